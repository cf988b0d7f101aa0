"""Boxes to learn as an objective: the detector's own loss on the host, average precision as the metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgelora.manifest import TensorSpec
from edgelora.media.image_inputs import ImageInputs
from edgelora.media.placement import Placement
from edgelora.objectives import Array, Feeds, OwnLoss
from edgelora.vision.average_precision import Found, Truth, summary
from edgelora.vision.boxes import areas
from edgelora.vision.detectors.detector import Detector

_SHOWN_SHARE, _SHOWN_SIDE = 0.25, 2.0  # of a box, and in pixels, that must be left in the input


class Detection(OwnLoss):
    """Objects in pictures: `truths[i]` is what is in the i-th, in its own pixels, of `classes` classes.

    The loss is the detector's, of each picture by itself; metrics are `AP50` and `AP` (COCO's) in the pictures' pixels.
    """

    metric, higher_is_better = "AP50", True
    separable = True
    data: ImageInputs

    def __init__(
        self, data: ImageInputs, truths: Sequence[Truth], detector: Detector, maps: Sequence[TensorSpec], classes: int
    ) -> None:
        self.data, self.truths, self.detector, self.maps, self.classes = data, truths, detector, maps, classes

    @property
    def size(self) -> tuple[int, int]:
        """The input's height and width."""
        return self.data.encoder.settings.size

    def cotangents(self, outputs: Mapping[str, Array], rows: NDArray[np.int64], total: float) -> tuple[float, Feeds]:
        numbers: list[int] = rows.tolist()
        shown = [placed(self.truths[row], self.data.placement(row)) for row in numbers]
        loss, gradients = self.detector.loss([outputs[spec.name] for spec in self.maps], self.size, shown)
        made = zip(self.maps, gradients, strict=True)
        return loss / total, {f"cotangent.{spec.name}": (g / total).astype(np.float32) for spec, g in made}

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        found: list[Found] = []
        loss = 0.0
        for joined, batch in zip(outputs, rows, strict=True):
            maps = self._apart(joined)
            numbers: list[int] = batch.tolist()
            placements = [self.data.placement(row) for row in numbers]
            shown = [placed(self.truths[row], p) for row, p in zip(numbers, placements, strict=True)]
            loss += self.detector.loss(maps, self.size, shown)[0]
            made = self.detector.find(maps, self.size)
            found += [in_picture(one, p) for one, p in zip(made, placements, strict=True)]
        order: list[int] = np.concatenate(rows).tolist()
        return {"loss": loss / len(order), **summary(found, [self.truths[row] for row in order], self.classes)}

    def _apart(self, joined: Array) -> list[Array]:
        """The maps of which all values of a picture lie side by side; where there is one it is as it was."""
        if len(self.maps) == 1:
            return [joined]
        sizes = [cast("list[int]", list(spec.shape[1:])) for spec in self.maps]
        ends = np.cumsum([math.prod(size) for size in sizes])[:-1]
        return [part.reshape(-1, *size) for part, size in zip(np.split(joined, ends, axis=1), sizes, strict=True)]


def placed(truth: Truth, placement: Placement) -> Truth:
    """What is left in a model's input of a picture's boxes, cut at its edge."""
    boxes = placement.boxes(truth.boxes)
    height, width = placement.size
    cut = np.clip(boxes, 0.0, [width, height, width, height])
    sides = cut[:, 2:] - cut[:, :2]
    kept = (areas(cut) >= _SHOWN_SHARE * areas(boxes)) & (sides >= _SHOWN_SIDE).all(1)
    return Truth(cut[kept], truth.classes[kept], truth.ignored[kept])


def in_picture(found: Found, placement: Placement) -> Found:
    """Detections in a model's input as boxes in the picture's pixels, cut at its edge; without those beside it."""
    height, width = placement.source
    boxes = np.clip(placement.boxes_back(found.boxes), 0.0, [width, height, width, height])
    inside = areas(boxes) > 0
    return Found(boxes[inside], found.classes[inside], found.scores[inside])
