"""Evaluate several adapters at once: every sample with its own, samples of similar length in one mixed batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import ConfigError, DataError
from edgelora.objectives import Array, Objective, stack
from edgelora.runtime import Model
from edgelora.samples import Sample
from edgelora.tasks import objective_for
from edgelora.trainer import check_targets, judged_outputs, side_by_side
from edgelora.training_config import TrainingConfig

Metrics = dict[str, float]


def evaluate_each(
    model: Model, samples: Sequence[Sample], adapters: Sequence[str], batch_size: int = 32
) -> tuple[Metrics, dict[str, Metrics]]:
    """Metrics of stored adapters, `adapters[i]` for sample i: their mean over all samples, and by adapter.

    Metrics are those of `edgelora.trainer.evaluate`, of each adapter's own samples and labels.

    Raises:
        StoreError: no such adapter. AdapterError: it does not fit this base.
        DataError: a label that its adapter does not know. ConfigError: an adapter without a head, a batch size below 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    manifest = model.bundle.manifest
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(adapters):
        groups.setdefault(name, []).append(number)
    objectives: dict[str, Objective] = {}
    classes: dict[str, int | None] = {}
    on_maps = manifest.head is not None and manifest.head.per == "pixel"
    for name, numbers in groups.items():
        adapter = model.store.load(name)
        adapter.validate(manifest)
        try:
            objective = objective_for(model, [samples[i] for i in numbers], adapter.labels, TrainingConfig())
            check_targets(manifest, adapter, objective)
        except (ConfigError, DataError) as error:
            raise type(error)(f"adapter {name!r}: {error}") from error
        objectives[name] = objective
        classes[name] = None if manifest.head is None else len(adapter.tensors[manifest.head.bias])
    lengths, places = np.empty(len(samples), np.int64), np.empty(len(samples), np.int64)
    for name, numbers in groups.items():
        lengths[numbers], places[numbers] = objectives[name].lengths(), np.arange(len(numbers))
    outputs: dict[str, list[Array]] = {name: [] for name in groups}
    rows: dict[str, list[NDArray[np.int64]]] = {name: [] for name in groups}
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        batch: list[int] = order[start : start + batch_size].tolist()
        parts = {name: places[[i for i in batch if adapters[i] == name]] for name in {adapters[i]: 0 for i in batch}}
        feeds = [objectives[name].inputs(part) for name, part in parts.items()]
        counts = [len(next(iter(one.values()))) for one in feeds]
        named = [name for name, count in zip(parts, counts, strict=True) for _ in range(count)]
        made = model.outputs(stack(feeds), adapters=named)
        ends: list[int] = np.cumsum(counts).tolist()
        for (name, part), end, count in zip(parts.items(), ends, counts, strict=True):
            asked = judged_outputs(objectives[name], manifest)
            own = [_own(made[one][end - count : end], classes[name], on_maps) for one in asked]
            outputs[name].append(objectives[name].measured(side_by_side(own), part))
            rows[name].append(part)
    found = {name: one.metrics(outputs[name], rows[name]) for name, one in objectives.items()}
    weights = {name: one.weight(np.arange(len(one))) for name, one in objectives.items()}
    total = sum(weights.values())
    keys = [key for key in next(iter(found.values())) if all(key in one for one in found.values())]
    mean = {key: sum(weights[name] * one[key] for name, one in found.items()) / total for key in keys}
    return mean, found


def _own(outputs: Array, classes: int | None, on_maps: bool) -> Array:
    """The outputs without what wider heads of the batch have more: classes stand last, or second of maps."""
    if classes is None:
        return outputs
    return outputs[:, :classes] if on_maps else outputs[..., :classes]
