"""The order of an epoch: shuffled from (seed, epoch), with batches of similar length."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MEGABATCH = 16  # batches that are sorted together; the rest of the order stays random


def epoch_batches(
    lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int, by_length: bool
) -> list[NDArray[np.int64]]:
    """Every row once, in batches of `batch_size` (the last may be smaller).

    With `by_length`, rows are shuffled, cut into mega-batches, sorted by length within each and cut into
    batches, and the batches are shuffled: little padding, and another composition every epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    if not by_length:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches: list[NDArray[np.int64]] = []
    span = batch_size * MEGABATCH
    for start in range(0, len(order), span):
        part = order[start : start + span]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def shares(rows: NDArray[np.int64], lengths: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """The rows of a batch in at most `count` parts of similar work, each of samples of similar length.

    A sample belongs to the part in which the middle of its work lies.
    """
    of_rows = lengths[rows]
    if (of_rows == of_rows[:1]).all():
        return _even_shares(rows, count)
    rows = rows[np.argsort(of_rows, kind="stable")]
    work = np.maximum(lengths[rows], 1)
    twice_middle = 2 * np.cumsum(work) - work
    parts = twice_middle * count // (2 * work.sum())
    edges = np.searchsorted(parts, np.arange(count + 1)).tolist()
    return [rows[begin:end] for begin, end in pairwise(edges) if begin < end]


def _even_shares(rows: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """`shares` of samples of one length: the i-th of n belongs to part ⌊(2i + 1)·count / 2n⌋."""
    n = len(rows)
    edges = [-((count - 2 * n * part) // (2 * count)) for part in range(count + 1)]
    return [rows[begin:end] for begin, end in pairwise(edges) if begin < end]
