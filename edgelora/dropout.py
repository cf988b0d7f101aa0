"""Masks of LoRA dropout, drawn for each sample by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.dimensions import evaluate_dimension
from edgelora.manifest import TensorSpec, TrainingGraph
from edgelora.objectives import Feeds


def masks_of_feeds(
    record: TrainingGraph,
    inputs: Sequence[TensorSpec],
    feeds: Feeds,
    probability: float,
    keys: Sequence[Sequence[int]],
) -> Feeds:
    """The masks that the training graph takes beside these feeds: uint8, for the input of each point.

    `inputs` are the model's, whose feeds tell the sizes. A key is (seed, step, sample), and masks are drawn token by
    token, so what is dropped of a sample depends neither on padding nor on what it is computed with.
    """
    sizes = {str(d): s for spec in inputs for d, s in zip(spec.shape, feeds[spec.name].shape, strict=True)}
    shapes = {s.name: [evaluate_dimension(d, sizes) for d in s.shape] for s in record.inputs if s.dtype == "uint8"}
    columns = max(len(feeds[inputs[0].name]) // len(keys), 1)
    return {**dropout_masks(shapes, probability, keys, columns)}


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
