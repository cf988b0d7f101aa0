"""Rows that may share a run because they are of similar length, and what several runs returned in the rows' order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.manifest import Manifest
from edgelora.objectives import Array, Feeds, FileInputs, Inputs

_ROWS, _POSITIONS = 32, 512  # of one run: more are no faster (docs/decisions/0016), and take more memory
_FILES = 8  # pictures of one run, whose rows are large


def rows_alike(manifest: Manifest, made: Inputs) -> Iterator[tuple[list[int], int, int]]:
    """Rows that may share runs, the shortest first, how many positions the longest has, and how many a run takes.

    These differ by a factor of two at most, so that no row makes others much longer than they are.
    """
    if isinstance(made, FileInputs):
        yield list(range(len(made))), 1, _FILES
        return
    lengths = np.maximum(made.lengths(), 1)
    longest = int(lengths.argmax())
    positions = _positions(manifest, made.feeds(np.array([longest])))
    of_row = np.maximum(-(-positions * lengths // lengths[longest]), 1)
    room = np.clip(_POSITIONS // of_row, 1, _ROWS)
    kinds = np.frexp(room)[1]
    for kind in np.unique(kinds)[::-1]:
        rows = np.flatnonzero(kinds == kind)
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        yield rows.tolist(), int(of_row[rows].max()), int(room[rows].min())


def _positions(manifest: Manifest, feeds: Feeds) -> int:
    """How many positions a row has: tokens of a text, 1 where no size but the batch's is dynamic."""
    return max(
        math.prod(size for d, size in zip(spec.shape[1:], feeds[spec.name].shape[1:], strict=True) if d != size)
        for spec in manifest.inputs
    )


def in_order(rows: int, parts: Sequence[tuple[NDArray[np.int64], dict[str, Array]]], rest: float) -> dict[str, Array]:
    """The outputs `[rows, ...]` of all rows, of runs of some of them each; one run of all in order is not copied.

    Heads or texts may be of different sizes: the rest of a smaller one is `rest`, or 0 where numbers are not real.
    """
    if len(parts) == 1 and np.array_equal(parts[0][0], np.arange(rows)):
        return parts[0][1]
    joined: dict[str, Array] = {}
    for name in parts[0][1]:
        shape = [max(p[name].shape[axis] for _, p in parts) for axis in range(1, parts[0][1][name].ndim)]
        dtype = parts[0][1][name].dtype
        whole = np.full((rows, *shape), rest if np.issubdtype(dtype, np.floating) else 0, dtype)
        for where, part in parts:
            array = part[name]
            whole[(where, *(slice(0, s) for s in array.shape[1:]))] = array
        joined[name] = whole
    return joined
