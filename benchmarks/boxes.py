"""A detector's loss of the benchmark's pictures: assignment, loss and gradient on the host, for every contender."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelora.vision.average_precision import Truth
from edgelora.vision.detectors import FAMILIES, Detector

FAMILY, CLASSES = "fastestdet", 80
Floats = NDArray[np.float32]


class Boxes:
    """Pictures of `size` (height, width) with an object each: `boxes` `[pictures, 4]` of the classes `labels`."""

    def __init__(self, boxes: Floats, labels: NDArray[np.int64], size: tuple[int, int]) -> None:
        self.detector, self.size = Detector(FAMILIES[FAMILY]), size
        inside = np.zeros(1, np.bool_)
        self.truths = [
            Truth(box[None].astype(np.float64), label[None], inside) for box, label in zip(boxes, labels, strict=True)
        ]

    def loss(self, made: Floats, rows: NDArray[np.int64]) -> tuple[float, Floats]:
        """The summed loss of these pictures, whose map is `made`, and its gradient."""
        loss, (slope,) = self.detector.loss([made], self.size, [self.truths[row] for row in rows.tolist()])
        return loss, slope.astype(np.float32)
