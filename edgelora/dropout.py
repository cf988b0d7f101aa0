"""Masks of LoRA dropout, drawn for each sample by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def dropout_masks(
    shapes: Mapping[str, Sequence[int]], probability: float, keys: Sequence[Sequence[int]], columns: int = 1
) -> dict[str, NDArray[np.uint8]]:
    """Masks `[samples, ..., features]` by name, 0 with this probability; those of a sample come from its key.

    They are drawn position by position, for all masks with the same positions at once, so that a sample keeps its
    masks however long it is padded. A batch of several `columns` (anchors, then positives) holds every sample once in
    each. Masks of other rows than the batch's are drawn from the same keys, in their order.
    """
    together: dict[tuple[int, ...], list[str]] = {}
    for name, shape in shapes.items():
        together.setdefault(tuple(shape[:-1]), []).append(name)
    masks: dict[str, NDArray[np.uint8]] = {}
    for group, (leading, names) in enumerate(together.items()):
        widths = [shapes[name][-1] for name in names]
        positions = -(-math.prod(leading) // (columns * len(keys)))
        kept = np.empty((columns * len(keys), positions, sum(widths)), np.bool_)
        for row, mask in enumerate(kept):
            column, sample = divmod(row, len(keys))
            rng = np.random.default_rng([*keys[sample], column, group])
            np.greater_equal(rng.random(mask.shape, np.float32), np.float32(probability), out=mask)
        rows = kept.reshape(-1, sum(widths))[: math.prod(leading)]
        for name, part in zip(names, np.split(rows, np.cumsum(widths)[:-1], axis=1), strict=True):
            masks[name] = np.ascontiguousarray(part).view(np.uint8).reshape(shapes[name])
    return masks
