"""Measure this device: load, forward, step, switch, memory. Figures of this moment, not promises."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter, head_names, new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.errors import ConfigError
from edgelora.memory import peak_memory
from edgelora.runtime import Model
from edgelora.session import SessionSettings
from edgelora.store import AdapterStore

Feeds = dict[str, NDArray[Any]]
_CLASSES, _WARM_UP = 10, 2
_SMALL_INDEX = 100  # any token table has as many rows


def bench(
    path: str | Path, settings: SessionSettings, batch_size: int, length: int, rank: int, steps: int
) -> dict[str, float | int | None]:
    """Medians over `steps` runs, on random inputs `[batch_size, length]`.

    `step_ms` is a whole training step of the graph (forward, loss, backward), `forward_ms` inference of
    the batch without and with an adapter, `switch_ms` activating another adapter of a store by name.
    """
    if min(batch_size, length, rank, steps) < 1:
        raise ConfigError("batch size, length, rank and steps must be at least 1")
    begun = time.perf_counter()
    bundle = Bundle.open(path, settings)
    record = bundle.manifest.training[0]
    forward, training = bundle.forward, bundle.graph(record.file)
    load = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    adapters = [_adapter(bundle, rank, seed) for seed in range(2)]
    inputs = random_inputs(bundle, batch_size, length, rng)
    on = {**inputs, **adapters[0].feeds(bundle.manifest)}
    off = {**inputs, **_without_points(bundle, adapters[0])}
    step = {**on, **_loss_feeds(bundle, on, batch_size, rng)}
    return {
        "batch_size": batch_size,
        "length": length,
        "rank": rank,
        "points": len(bundle.manifest.points),
        "load_ms": 1000 * load,
        "forward_off_ms": _median(lambda _: forward.run(off), steps),
        "forward_on_ms": _median(lambda _: forward.run(on), steps),
        "step_ms": _median(lambda _: training.run(step), steps),
        "switch_ms": _switch(bundle, adapters, steps),
        "peak_memory_mb": None if (peak := peak_memory()) is None else peak / 1e6,
    }


def _switch(bundle: Bundle, adapters: Sequence[Adapter], steps: int) -> float:
    with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
        model = Model(bundle, AdapterStore(folder))
        names = [f"user-{number}" for number in range(len(adapters))]
        for name, adapter in zip(names, adapters, strict=True):
            model.store.save(name, adapter)
        return _median(lambda i: model.activate(names[i % len(names)]), steps)


def random_inputs(bundle: Bundle, batch_size: int, length: int, rng: np.random.Generator) -> Feeds:
    """Inputs of the bundle: the first dynamic dimension is the batch, the others have `length`."""
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
            top = 1 if "type" in spec.name else _SMALL_INDEX
            feeds[spec.name] = rng.integers(0, top, shape).astype(spec.dtype)
    return feeds


def _adapter(bundle: Bundle, rank: int, seed: int) -> Adapter:
    labels = tuple(f"class {i}" for i in range(_CLASSES)) if "classification" in bundle.manifest.task else None
    config = LoraConfig(r=rank, lora_alpha=rank)
    return new_adapter(bundle.manifest, config, labels, outputs=1, rng=np.random.default_rng(seed))


def _without_points(bundle: Bundle, adapter: Adapter) -> Feeds:
    head = {name: adapter.tensors[name] for name in head_names(bundle.manifest)}
    return {**adapter.with_tensors(head).feeds(bundle.manifest)}


def _loss_feeds(bundle: Bundle, feeds: Feeds, batch_size: int, rng: np.random.Generator) -> Feeds:
    """Values for the loss inputs of the bundle's first training graph."""
    outputs: Feeds = bundle.forward.run(feeds)
    prediction = next(iter(outputs.values()))
    made: Feeds = {}
    for spec in bundle.manifest.training[0].inputs:
        if spec.name.startswith("cotangent."):
            shape = outputs[spec.name.removeprefix("cotangent.")].shape
            made[spec.name] = np.asarray(rng.standard_normal(shape), np.float32)
        elif spec.name in ("labels", "loss_weight"):
            shape = prediction.shape[: len(spec.shape)] if "classification" in bundle.manifest.task else (batch_size,)
            made[spec.name] = np.full(shape, 0 if spec.name == "labels" else 1 / batch_size, spec.dtype)
        elif spec.name == "bias_mask":
            made[spec.name] = np.zeros((batch_size, batch_size), np.float32)
        elif spec.name == "targets":
            made[spec.name] = np.zeros(prediction.shape, np.float32)
        else:
            made[spec.name] = np.ones((), np.float32) if not spec.shape else np.arange(batch_size)
    return {**made, "loss_weight": np.full(batch_size, 1 / batch_size, np.float32)} if "anchors" in made else made


def _median(run: Callable[[int], object], steps: int) -> float:
    """Median milliseconds of `run`."""
    times: list[float] = []
    for i in range(_WARM_UP + steps):
        begun = time.perf_counter()
        run(i)
        times.append(time.perf_counter() - begun)
    return 1000 * float(np.median(times[_WARM_UP:]))
