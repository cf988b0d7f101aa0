"""Logits of a model's input as classes of a picture's own pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.media.placement import Placement
from edgelora.vision.masks import IGNORED, Classes

Floats = NDArray[np.float32]


def classes_of_picture(logits: NDArray[Any], placement: Placement) -> Classes:
    """The best class of each pixel of the picture `[H, W]`, from logits `[classes, h, w]` of the input.

    Logits are interpolated bilinearly between centres. Pixels that the input does not show are `IGNORED`.
    """
    (rows, above, along), (columns, left, across) = (
        _neighbours(placement, axis, logits.shape[2 - axis]) for axis in (1, 0)
    )
    best = np.full(placement.source, -np.inf, np.float32)
    classes = np.zeros(placement.source, np.uint8)
    for number, plane in enumerate(np.asarray(logits, np.float32)):
        lines = plane[above[0]] * (1 - along)[:, None] + plane[above[1]] * along[:, None]
        made = lines[:, left[0]] * (1 - across) + lines[:, left[1]] * across
        better = made > best
        np.copyto(best, made, where=better)
        classes[better] = number
    classes[~rows] = IGNORED
    classes[:, ~columns] = IGNORED
    return classes


def _neighbours(
    placement: Placement, axis: int, size: int
) -> tuple[NDArray[np.bool_], tuple[NDArray[np.int64], NDArray[np.int64]], Floats]:
    """For each pixel along x (0) or y (1): whether the input shows it, the places beside it, how far it is between.

    `size` are the places along the axis, which may be fewer than the input's pixels.
    """
    length, inside = placement.source[1 - axis], placement.size[1 - axis]
    at = placement.scale[axis] * (np.arange(length) + 0.5) + placement.offset[axis]
    shown = (at >= 0) & (at <= inside)
    between = np.clip(at * size / inside - 0.5, 0, size - 1)
    first = np.floor(between).astype(np.int64)
    return shown, (first, np.minimum(first + 1, size - 1)), (between - first).astype(np.float32)
