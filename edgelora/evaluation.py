"""Evaluate several adapters at once: every sample with its own, samples of similar length in one mixed batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import ConfigError, DataError
from edgelora.manifest import LORA_GRAPHS
from edgelora.measuring import measure, side_by_side
from edgelora.objectives import Array, Objective, stack
from edgelora.runtime import Model
from edgelora.samples import Sample
from edgelora.tasks import objective_for
from edgelora.training_checks import check_targets
from edgelora.training_config import TrainingConfig

Metrics = dict[str, float]
Measured = tuple[list[Array], list[NDArray[np.int64]]]


def evaluate_each(
    model: Model,
    samples: Sequence[Sample],
    adapters: Sequence[str],
    batch_size: int = 32,
    config: TrainingConfig | None = None,
) -> tuple[Metrics, dict[str, Metrics]]:
    """Metrics of stored adapters, `adapters[i]` for sample i: their mean over all samples, and by adapter.

    Metrics are those of `edgelora.trainer.evaluate`, of each adapter's own samples and labels. Of `config` those
    settings count that say how samples are read.

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
    for name, numbers in groups.items():
        adapter = model.store.load(name)
        adapter.validate(manifest)
        try:
            objective = objective_for(model, [samples[i] for i in numbers], adapter.labels, config or TrainingConfig())
            check_targets(manifest, adapter, objective)
        except (ConfigError, DataError) as error:
            raise type(error)(f"adapter {name!r}: {error}") from error
        objectives[name] = objective
        classes[name] = None if manifest.head is None else len(adapter.tensors[manifest.head.bias])
    if manifest.language is None:
        measured = _together(model, objectives, classes, adapters, batch_size)
    else:
        measured = {n: measure(model.bundle, model.store.load(n), o, batch_size) for n, o in objectives.items()}
    found = {name: one.metrics(*measured[name]) for name, one in objectives.items()}
    first = next(iter(objectives.values()))
    if manifest.language is not None and all(type(one) is type(first) for one in objectives.values()):
        outputs, rows = (list(chain.from_iterable(parts)) for parts in zip(*measured.values(), strict=True))
        return first.metrics(
            outputs, rows
        ), found  # what is measured of text is counted: means of perplexities are none
    return _mean(objectives, found), found


def _together(
    model: Model,
    objectives: Mapping[str, Objective],
    classes: Mapping[str, int | None],
    adapters: Sequence[str],
    batch_size: int,
) -> dict[str, Measured]:
    """What is measured of the samples of each adapter, whose rows run beside those of others."""
    manifest = model.bundle.manifest
    on_maps = manifest.head is not None and manifest.head.per == "pixel"
    lengths, places = np.empty(len(adapters), np.int64), np.empty(len(adapters), np.int64)
    for name, objective in objectives.items():
        numbers = [number for number, own in enumerate(adapters) if own == name]
        lengths[numbers], places[numbers] = objective.lengths(), np.arange(len(numbers))
    outputs: dict[str, list[Array]] = {name: [] for name in objectives}
    rows: dict[str, list[NDArray[np.int64]]] = {name: [] for name in objectives}
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
            asked = objectives[name].judge(manifest, LORA_GRAPHS).outputs
            own = [_own(made[one][end - count : end], classes[name], on_maps) for one in asked]
            outputs[name].append(objectives[name].measured(side_by_side(own), part))
            rows[name].append(part)
    return {name: (outputs[name], rows[name]) for name in objectives}


def _mean(objectives: Mapping[str, Objective], found: Mapping[str, Metrics]) -> Metrics:
    """The metrics that all have, weighted as the samples are."""
    weights = {name: one.weight(np.arange(len(one))) for name, one in objectives.items()}
    total = sum(weights.values())
    keys = [key for key in next(iter(found.values())) if all(key in one for one in found.values())]
    return {key: sum(weights[name] * one[key] for name, one in found.items()) / total for key in keys}


def _own(outputs: Array, classes: int | None, on_maps: bool) -> Array:
    """The outputs without what wider heads of the batch have more: classes stand last, or second of maps."""
    if classes is None:
        return outputs
    return outputs[:, :classes] if on_maps else outputs[..., :classes]
