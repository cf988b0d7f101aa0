"""Measure this device: load, inference, a step of training, switching, memory. Figures of this moment, not promises."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgelora.adapter import Adapter, head_names
from edgelora.bundle import Bundle
from edgelora.drawn import drawn_adapter, drawn_inputs, drawn_trainer
from edgelora.errors import ConfigError
from edgelora.language.bench import bench_language
from edgelora.manifest import TrainingGraph
from edgelora.multiplication import fastest, operations, square
from edgelora.objectives import Feeds, Pairs
from edgelora.probes import loss_feeds
from edgelora.runtime import Model
from edgelora.session import SessionSettings
from edgelora.store import AdapterStore
from edgelora.trainer import Trainer

_WARM_UP = 2


def bench(
    path: str | Path, settings: SessionSettings, batch_size: int, length: int, rank: int, steps: int
) -> dict[str, Any]:
    """Medians over `steps` runs, on random inputs `[batch_size, length]`.

    `forward_off_ms` and `forward_on_ms` are inference of the batch without and with an adapter, with `_1` of one row;
    `mixed_rows_per_second` has another adapter in every row, `switch_ms` is activating an adapter of a store by name.
    `step_ms` is an update as `train` makes it, a part of the batch on each core, by training graph (None: it takes
    none of its own). Of the first of them there are `samples_per_second`, `tokens_per_second` (None: no tokens), and
    `gemm_share`: the operations a second of the step's products to `peak_gflops`, what the same cores reach in one
    float32 product in between the steps. A language model also has the figures of `bench_language`.

    Raises:
        ConfigError: a number below 1, or more tokens than a language model takes. BundleError: the bundle cannot be
            opened.
    """
    if min(batch_size, length, rank, steps) < 1:
        raise ConfigError("batch size, length, rank and steps must be at least 1")
    begun = time.perf_counter()
    bundle = Bundle.open(path, settings)
    forward = bundle.forward
    load = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    adapters = [drawn_adapter(bundle, rank, seed) for seed in range(max(batch_size, 2))]
    figures: dict[str, Any] = {
        "batch_size": batch_size,
        "length": length,
        "rank": rank,
        "points": len(bundle.manifest.points),
        "cores": settings.cores,
        "load_ms": 1000 * load,
    }
    for rows, suffix in ((1, "_1"), (batch_size, "")):
        inputs = drawn_inputs(bundle, rows, length, rng)
        on = {**inputs, **adapters[0].feeds(bundle.manifest)}
        off = {**inputs, **_without_points(bundle, adapters[0])}
        figures[f"forward_off{suffix}_ms"] = _median(lambda _, feeds=off: forward.run(feeds), steps)
        figures[f"forward_on{suffix}_ms"] = _median(lambda _, feeds=on: forward.run(feeds), steps)
        figures[f"rows_per_second{suffix}"] = 1000 * rows / figures[f"forward_on{suffix}_ms"]
    inputs = drawn_inputs(bundle, batch_size, length, rng)
    figures["mixed_rows_per_second"] = _mixed(bundle, inputs, adapters[:batch_size], steps)
    figures["switch_ms"] = _switch(bundle, adapters[:2], steps)
    if (language := bundle.manifest.language) is not None:
        figures |= bench_language(bundle, language, adapters[0], batch_size, length, steps)
    return figures | _training(bundle, batch_size, length, rank, steps)


def _training(bundle: Bundle, batch_size: int, length: int, rank: int, steps: int) -> dict[str, Any]:
    """The figures of training, one graph after the other; each is released again."""
    products = square(bundle.settings.cores)
    rates: list[dict[str, float]] = []
    taken: dict[str, float | None] = {}
    first: dict[str, Any] = {"samples_per_second": None, "tokens_per_second": None, "gemm_share": None}
    for record in sorted(bundle.manifest.training, key=lambda r: r.dropout):
        try:
            trainer = drawn_trainer(bundle, record, batch_size, length, rank)
        except ConfigError:
            taken[record.file] = None
            continue
        rows = np.arange(batch_size)
        between = (lambda: rates.append(products.rates())) if not rates else None
        taken[record.file] = milliseconds = _median(lambda _, t=trainer, r=rows: t.step(r), steps, between)
        if between is not None:
            needed = _operations(trainer, record)
            first = _throughput(trainer, milliseconds)
            first["gemm_share"] = 1000 * needed / milliseconds / fastest(rates)
        trainer.close()
        for file in record.all_files:
            bundle.release(file)
    rates = rates or [products.rates() for _ in range(steps)]
    products.close()
    return first | {"peak_gflops": fastest(rates) / 1e9, "step_ms": taken}


def _throughput(trainer: Trainer, milliseconds: float) -> dict[str, Any]:
    """Samples and tokens a second of a step on all samples; tokens where an input is `[rows, tokens]` of numbers."""
    rows = np.arange(len(trainer.objective))
    feeds = trainer.objective.inputs(rows)
    tokens = [a.size for a in feeds.values() if a.ndim == 2 and a.dtype.kind in "iu"]
    return {
        "samples_per_second": 1000 * len(rows) / milliseconds,
        "tokens_per_second": 1000 * max(tokens) / milliseconds if tokens else None,
    }


def _operations(trainer: Trainer, record: TrainingGraph) -> float:
    """Float operations of the products of a step on all samples."""
    bundle, objective, rng = trainer.bundle, trainer.objective, np.random.default_rng(0)
    on = {**objective.inputs(np.arange(len(objective))), **trainer.adapter.feeds(bundle.manifest)}
    fed = {**on, **loss_feeds(bundle.manifest, record, on, bundle.forward.run(on), rng)}
    if isinstance(objective, Pairs):
        fed |= objective.feeds(np.arange(len(objective)), 1.0)
    if record.halves is not None:
        fed |= bundle.graph(record.halves.forward).run(fed)
    return sum(operations(bundle.path / file, bundle.settings, fed) for file in trainer.files(record))


def _mixed(bundle: Bundle, inputs: Feeds, adapters: Sequence[Adapter], steps: int) -> float:
    """Rows a second where every row of the batch has an adapter of its own, by name."""
    with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
        model = Model(bundle, AdapterStore(folder))
        names = [f"user-{number}" for number in range(len(adapters))]
        for name, adapter in zip(names, adapters, strict=True):
            model.store.save(name, adapter)
        rows = len(next(iter(inputs.values())))
        return 1000 * rows / _median(lambda _: model.outputs(inputs, adapters=names), steps)


def _switch(bundle: Bundle, adapters: Sequence[Adapter], steps: int) -> float:
    with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
        model = Model(bundle, AdapterStore(folder))
        names = [f"user-{number}" for number in range(len(adapters))]
        for name, adapter in zip(names, adapters, strict=True):
            model.store.save(name, adapter)
        return _median(lambda i: model.activate(names[i % len(names)]), steps)


def _without_points(bundle: Bundle, adapter: Adapter) -> Feeds:
    head = {name: adapter.tensors[name] for name in head_names(bundle.manifest)}
    return {**adapter.with_tensors(head).feeds(bundle.manifest)}


def _median(run: Callable[[int], object], steps: int, between: Callable[[], object] | None = None) -> float:
    """Median milliseconds of `run`; `between` is called after each that counts."""
    times: list[float] = []
    for i in range(_WARM_UP + steps):
        begun = time.perf_counter()
        run(i)
        times.append(time.perf_counter() - begun)
        if between is not None and i >= _WARM_UP:
            between()
    return 1000 * float(np.median(times[_WARM_UP:]))
