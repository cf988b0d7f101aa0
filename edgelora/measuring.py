"""Metrics of an adapter on samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter
from edgelora.bundle import Bundle
from edgelora.errors import ConfigError
from edgelora.objectives import Array, Objective
from edgelora.prefix_cache import PrefixCache
from edgelora.training_checks import check_targets


def evaluate(
    bundle: Bundle, adapter: Adapter, objective: Objective, batch_size: int = 32, cache: PrefixCache | None = None
) -> dict[str, float]:
    """Metrics of an adapter on samples, by the objective's judge, or by what comes after the prefix of `cache`.

    `loss` and what the objective has beside it, as accuracy (classification) or recall@1 (sentence embedding).

    Raises:
        ConfigError: no samples, no head, or a batch size below 1. DataError: another number of targets.
    """
    return objective.metrics(*measure(bundle, adapter, objective, batch_size, cache))


def measure(
    bundle: Bundle, adapter: Adapter, objective: Objective, batch_size: int = 32, cache: PrefixCache | None = None
) -> tuple[list[Array], list[NDArray[np.int64]]]:
    """What the metrics are computed from, batch by batch, and the samples of each batch. Raises as `evaluate` does."""
    if not len(objective):
        raise ConfigError("there are no samples to evaluate")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    check_targets(bundle.manifest, adapter, objective)
    feeds = bundle.feeds(adapter)
    outputs: list[Array] = []
    rows: list[NDArray[np.int64]] = []
    judge = objective.judge(bundle.manifest, adapter.method.graphs)
    cache = cache if judge.file is None else None
    file = judge.file if cache is None else cache.prefix.forward
    graph = bundle.forward_in(adapter.method.graphs) if file is None else bundle.graph(file)
    for batch in length_sorted_batches(objective.lengths(), batch_size):
        if cache is not None and cache.suffices(graph):
            inputs = cache.values(batch)
        else:
            inputs = objective.inputs(batch)
            inputs = inputs if cache is None else cache.feeds(inputs, batch)
        made = graph.run({**inputs, **feeds}, judge.outputs)
        outputs.append(objective.measured(side_by_side(list(made.values())), batch))
        graph.rest()
        rows.append(batch)
    graph.give_back_pages()
    return outputs, rows


def side_by_side(arrays: Sequence[Array]) -> Array:
    """One array as it is; of several `[rows, …]` all values of a row: `[rows, values]`."""
    return arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)


def length_sorted_batches(lengths: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Batches of similar length, shortest first: the least padding."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
