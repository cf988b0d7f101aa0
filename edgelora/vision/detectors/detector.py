"""A detector: what its maps mean, and what a picture's boxes ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelora.vision.average_precision import Found, Truth
from edgelora.vision.boxes import Reals, corners, overlap, suppress
from edgelora.vision.detectors.cells import (
    NOTHING,
    Anchors,
    Array,
    Cells,
    Positives,
    Predictions,
    cells_of,
    maps_of,
    rows_of,
)

CANDIDATES = 1000  # of a picture, the best, that are compared with each other
_LEAST_SCORE = 1e-3  # what an evaluation looks at


class Family(Protocol):
    """Detectors that share a meaning of their maps, an assignment and a loss."""

    objectness_first: bool  # else the four numbers of the box are; the classes come last
    measure: str  # how a box is compared with its object's, of `boxes.OVERLAPS`

    def code(self, raw: Reals, cells: Cells) -> tuple[Reals, Reals]:
        """Boxes `[..., K, 4]` as centre, width and height in pixels of the input, and their slopes in `raw`."""
        ...

    def scores(self, said: Predictions) -> Reals:
        """How sure the candidates are of each class: `[K, C]` in 0 … 1."""
        ...

    def assign(self, said: Predictions, boxes: Reals, cells: Cells, truth: Truth) -> Positives:
        """The candidates that answer for the objects of a picture; `boxes` `[K, 4]` are what they say now."""
        ...

    def box_loss(self, met: Reals) -> tuple[float, Reals]:
        """What the overlaps `[P]` of the positives with their objects cost, and its gradient."""
        ...

    def other_loss(self, said: Predictions, cells: Cells, positives: Positives) -> tuple[float, Reals, Reals]:
        """What objectness and classes cost, and its gradients for both."""
        ...


@dataclass(frozen=True)
class Detector:
    """What the maps `[N, anchors·(5 + classes), h, w]` of a network mean; `anchors` for each map, if it has any.

    Boxes are in pixels of the network's input. The loss of a picture depends on this picture alone, so that of a batch
    is the sum however it is divided.
    """

    family: Family
    anchors: tuple[Anchors, ...] = ()

    def find(
        self,
        maps: Sequence[Array],
        size: tuple[int, int],
        score: float = _LEAST_SCORE,
        doubles: float = 0.5,
        most: int = 100,
    ) -> list[Found]:
        """What is in each of N pictures, best first, of an input of `size` (height, width).

        A candidate has its best class; it counts from `score` on, unless it overlaps a better one of that class by more
        than `doubles`. A picture has `most` detections at most.
        """
        cells = cells_of(maps, size, self.anchors)
        return [self._found(said, cells, score, doubles, most) for said in self._said(maps)]

    def loss(
        self, maps: Sequence[Array], size: tuple[int, int], truths: Sequence[Truth]
    ) -> tuple[float, list[NDArray[np.float64]]]:
        """The sum of the pictures' losses, and its gradient for each map; `truths` in pixels of the input.

        Which candidate answers for which object follows from what the maps say now, and counts as a constant.
        """
        cells = cells_of(maps, size, self.anchors)
        total = 0.0
        rows: list[Reals] = []
        for said, truth in zip(self._said(maps), truths, strict=True):
            kept = ~truth.ignored
            shown = Truth(truth.boxes[kept], truth.classes[kept], truth.ignored[kept])
            boxes = corners(self.family.code(said.raw, cells)[0])
            positives = self.family.assign(said, boxes, cells, shown) if kept.any() else NOTHING
            loss, slope = self.picture_loss(said, cells, positives)
            total += loss
            rows.append(self._row(slope))
        return total, maps_of(np.stack(rows), maps, cells.anchors)

    def picture_loss(self, said: Predictions, cells: Cells, positives: Positives) -> tuple[float, Predictions]:
        """The loss of a picture whose positives are known, and its gradient."""
        loss, objectness, classes = self.family.other_loss(said, cells, positives)
        raw = np.zeros_like(said.raw)
        if len(positives.candidate):
            coded, slope = self.family.code(said.raw, cells)
            chosen = positives.candidate
            met, d_corner = overlap(corners(coded[chosen]), positives.box, self.family.measure)
            cost, d_met = self.family.box_loss(met)
            loss += cost
            d_corner = d_corner * d_met[:, None]
            low, high = d_corner[:, :2], d_corner[:, 2:]
            d_coded = np.concatenate([low + high, (high - low) / 2], axis=1)
            np.add.at(raw, chosen, d_coded * slope[chosen])
        return loss, Predictions(raw, objectness, classes)

    def _said(self, maps: Sequence[Array]) -> list[Predictions]:
        count = len(self.anchors[0]) if self.anchors else 1
        box, objectness = self._columns()
        return [Predictions(row[:, box], row[:, objectness], row[:, 5:]) for row in rows_of(maps, count)]

    def _row(self, slope: Predictions) -> Reals:
        row = np.empty((len(slope.raw), 5 + slope.classes.shape[1]))
        box, objectness = self._columns()
        row[:, box], row[:, objectness], row[:, 5:] = slope.raw, slope.objectness, slope.classes
        return row

    def _columns(self) -> tuple[slice, int]:
        return (slice(1, 5), 0) if self.family.objectness_first else (slice(0, 4), 4)

    def _found(self, said: Predictions, cells: Cells, score: float, doubles: float, most: int) -> Found:
        scores = self.family.scores(said)
        classes = scores.argmax(1)
        best = scores[np.arange(len(scores)), classes]
        likely = np.flatnonzero(best >= score)
        likely = likely[np.argsort(-best[likely], kind="stable")][:CANDIDATES]
        boxes = corners(self.family.code(said.raw, cells)[0][likely])
        kept = suppress(boxes, best[likely], classes[likely], doubles)[:most]
        return Found(boxes[kept], classes[likely][kept], best[likely][kept])
