"""Arrays as views of one flat array, so that all of them are worked on at once."""

from __future__ import annotations

import numpy as np

from edgelora.objectives import Floats


def flatten(arrays: list[Floats]) -> tuple[Floats, list[Floats]]:
    """One flat copy of the arrays, and views of it in their shapes."""
    flat = np.concatenate([a.ravel() for a in arrays]) if arrays else np.zeros(0, np.float32)
    return flat, views_of(flat, [a.shape for a in arrays])


def views_of(flat: Floats, shapes: list[tuple[int, ...]]) -> list[Floats]:
    """Consecutive views of `flat` in these shapes."""
    views: list[Floats] = []
    offset = 0
    for shape in shapes:
        size = int(np.prod(shape))
        views.append(flat[offset : offset + size].reshape(shape))
        offset += size
    return views
