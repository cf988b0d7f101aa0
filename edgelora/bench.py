"""Measure this device: load, forward, step, switch, memory. Figures of this moment, not promises."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter, head_names, new_adapter
from edgelora.bundle import Bundle
from edgelora.check import loss_feeds, parity_samples
from edgelora.config import LoraConfig
from edgelora.errors import ConfigError
from edgelora.manifest import TrainingGraph
from edgelora.memory import peak_memory
from edgelora.runtime import Model
from edgelora.session import Graph, SessionSettings
from edgelora.store import AdapterStore
from edgelora.tuning import Trial

Feeds = dict[str, NDArray[Any]]
_CLASSES, _WARM_UP, _TRIAL_STEPS = 10, 2, 6


def bench(
    path: str | Path, settings: SessionSettings, batch_size: int, length: int, rank: int, steps: int
) -> dict[str, Any]:
    """Medians over `steps` runs, on random inputs `[batch_size, length]`.

    `forward_off_ms` and `forward_on_ms` are inference of the batch without and with an adapter, with `_1` of one row;
    `mixed_rows_per_second` has another adapter in every row, `switch_ms` is activating an adapter of a store by name,
    `step_ms` a whole run (forward, loss, backward) of each training graph, `peak_gflops` what numpy's matrix product
    reaches on this machine.
    """
    if min(batch_size, length, rank, steps) < 1:
        raise ConfigError("batch size, length, rank and steps must be at least 1")
    begun = time.perf_counter()
    bundle = Bundle.open(path, settings)
    forward = bundle.forward
    load = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    adapters = [_adapter(bundle, rank, seed) for seed in range(batch_size)]
    if batch_size == 1:
        adapters.append(_adapter(bundle, rank, 1))
    figures: dict[str, Any] = {
        "batch_size": batch_size,
        "length": length,
        "rank": rank,
        "points": len(bundle.manifest.points),
        "load_ms": 1000 * load,
    }
    for rows, suffix in ((1, "_1"), (batch_size, "")):
        inputs = random_inputs(bundle, rows, length, rng)
        on = {**inputs, **adapters[0].feeds(bundle.manifest)}
        off = {**inputs, **_without_points(bundle, adapters[0])}
        figures[f"forward_off{suffix}_ms"] = _median(lambda _, feeds=off: forward.run(feeds), steps)
        figures[f"forward_on{suffix}_ms"] = _median(lambda _, feeds=on: forward.run(feeds), steps)
        figures[f"rows_per_second{suffix}"] = 1000 * rows / figures[f"forward_on{suffix}_ms"]
    inputs = random_inputs(bundle, batch_size, length, rng)
    figures["mixed_rows_per_second"] = _mixed(bundle, inputs, adapters[:batch_size], steps)
    figures["switch_ms"] = _switch(bundle, adapters[:2], steps)
    figures["step_ms"] = {
        record.file: _step(bundle, record, inputs, adapters[0], rng, steps) for record in bundle.manifest.training
    }
    figures["peak_gflops"] = peak_gflops(steps)
    figures["peak_memory_mb"] = None if (peak := peak_memory()) is None else peak / 1e6
    return figures


def _mixed(bundle: Bundle, inputs: Feeds, adapters: Sequence[Adapter], steps: int) -> float:
    """Rows a second where every row of the batch has an adapter of its own, by name."""
    with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
        model = Model(bundle, AdapterStore(folder))
        names = [f"user-{number}" for number in range(len(adapters))]
        for name, adapter in zip(names, adapters, strict=True):
            model.store.save(name, adapter)
        rows = len(next(iter(inputs.values())))
        return 1000 * rows / _median(lambda _: model.outputs(inputs, adapters=names), steps)


def _step(
    bundle: Bundle, record: TrainingGraph, inputs: Feeds, adapter: Adapter, rng: np.random.Generator, steps: int
) -> float | None:
    """A run of a training graph, or None if random values do not suit it; the graph is released again."""
    feeds = step_feeds(bundle, record, inputs, adapter, rng)
    if feeds is None:
        return None
    graph = bundle.graph(record.file)
    taken = _median(lambda _: graph.run(feeds), steps)
    bundle.release(record.file)
    return taken


def step_feeds(
    bundle: Bundle, record: TrainingGraph, inputs: Feeds, adapter: Adapter, rng: np.random.Generator
) -> Feeds | None:
    """All that a training graph takes, with random values; None where a size does not follow from the inputs."""
    on = {**inputs, **adapter.feeds(bundle.manifest)}
    try:
        extra = loss_feeds(bundle.manifest, record, inputs, bundle.forward.run(on), rng)
    except ConfigError:
        return None
    return {**on, **extra}


def peak_gflops(steps: int, size: int = 768) -> float:
    """Billions of multiplications and additions a second in numpy's product of square float32 matrices."""
    a = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    return 2 * size**3 / 1e6 / _median(lambda _: a @ a, max(steps, 5))


def _switch(bundle: Bundle, adapters: Sequence[Adapter], steps: int) -> float:
    with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
        model = Model(bundle, AdapterStore(folder))
        names = [f"user-{number}" for number in range(len(adapters))]
        for name, adapter in zip(names, adapters, strict=True):
            model.store.save(name, adapter)
        return _median(lambda i: model.activate(names[i % len(names)]), steps)


def random_inputs(bundle: Bundle, batch_size: int, length: int, rng: np.random.Generator) -> Feeds:
    """Inputs of the bundle: the first dynamic dimension is the batch, the others have `length`.

    Whole numbers are drawn from the bundle's own samples: they are indices into tables.
    """
    sample = parity_samples(bundle)[0][0]
    feeds: Feeds = {}
    for spec in bundle.manifest.inputs:
        shape = [
            d if isinstance(d, int) else (batch_size if axis == 0 else length) for axis, d in enumerate(spec.shape)
        ]
        if spec.dtype.startswith("float"):
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif "mask" in spec.name or spec.dtype == "bool":
            feeds[spec.name] = np.ones(shape, spec.dtype)
        else:
            feeds[spec.name] = rng.choice(sample[spec.name].ravel(), shape).astype(spec.dtype)
    return feeds


def _adapter(bundle: Bundle, rank: int, seed: int) -> Adapter:
    labels = tuple(f"class {i}" for i in range(_CLASSES)) if "classification" in bundle.manifest.task else None
    config = LoraConfig(r=rank, lora_alpha=rank)
    return new_adapter(bundle.manifest, config, labels, outputs=1, rng=np.random.default_rng(seed))


def _without_points(bundle: Bundle, adapter: Adapter) -> Feeds:
    head = {name: adapter.tensors[name] for name in head_names(bundle.manifest)}
    return {**adapter.with_tensors(head).feeds(bundle.manifest)}


def _median(run: Callable[[int], object], steps: int) -> float:
    """Median milliseconds of `run`."""
    times: list[float] = []
    for i in range(_WARM_UP + steps):
        begun = time.perf_counter()
        run(i)
        times.append(time.perf_counter() - begun)
    return 1000 * float(np.median(times[_WARM_UP:]))


def _try_settings(asked: str) -> None:
    """In a fresh process: three steps of one batch, in parts if asked, and the peak memory on standard output."""
    body: dict[str, Any] = json.loads(asked)
    trial = Trial(**body["trial"])
    bundle = Bundle.open(body["path"], trial.settings)
    rng = np.random.default_rng(0)
    part = trial.micro_batch_size or body["batch_size"]
    adapter = _adapter(bundle, body["rank"], 0)
    feeds, graph = _anything_to_train(bundle, random_inputs(bundle, part, body["length"], rng), adapter, rng)
    times: list[float] = []
    cold = 0.0
    for _ in range(_TRIAL_STEPS):
        begun = time.perf_counter()
        for _ in range(-(-body["batch_size"] // part)):
            graph.run(feeds)
        times.append(time.perf_counter() - begun)
        cold = cold or time.time() - body["started"]
    peak = peak_memory()
    result = {"cold_start_ms": 1000 * cold, "step_ms": 1000 * float(np.median(times[1:]))}
    sys.stdout.write(json.dumps(result | {"peak_memory_mb": None if peak is None else peak / 1e6}))


def _anything_to_train(
    bundle: Bundle, inputs: Feeds, adapter: Adapter, rng: np.random.Generator
) -> tuple[Feeds, Graph]:
    """The first training graph, without dropout if there is one, and its feeds; inference where there is none."""
    for record in sorted(bundle.manifest.training, key=lambda r: r.dropout):
        feeds = step_feeds(bundle, record, inputs, adapter, rng)
        if feeds is not None:
            bundle.release(bundle.manifest.forward)
            return feeds, bundle.graph(record.file)
    return {**inputs, **adapter.feeds(bundle.manifest)}, bundle.forward


if __name__ == "__main__":
    _try_settings(sys.argv[1])
