"""Masks as runs of equal pixels, as COCO writes them without compression."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_runs(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """`size` [height, width], and `counts`: how many pixels, column by column, are out, in, out, … of the mask."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate([[0] if flat.size and flat[0] else [], changes, [flat.size]]).astype(np.int64)
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def from_runs(runs: dict[str, Any]) -> NDArray[np.bool_]:
    """The mask `[height, width]`."""
    counts = np.asarray(runs["counts"], np.int64)
    inside: NDArray[np.bool_] = np.arange(len(counts)) % 2 == 1
    flat: NDArray[np.bool_] = np.repeat(inside, counts)
    return flat.reshape((int(runs["size"][0]), int(runs["size"][1])), order="F")
