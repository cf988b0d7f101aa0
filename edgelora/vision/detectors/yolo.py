"""Detectors with anchors, as YOLOv5's head: several boxes a cell, each told against a box of usual size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelora.vision.average_precision import Truth
from edgelora.vision.boxes import Reals, overlap
from edgelora.vision.detectors.cells import Cells, Positives, Predictions
from edgelora.vision.detectors.losses import binary_cross_entropy, sigmoid

_BALANCE = (4.0, 1.0, 0.4)  # the weight of objectness by map, finest first, where there are three


@dataclass(frozen=True)
class Yolo:
    """Centre (2σ(t) − ½ + cell)·stride, sides (2σ(t))²·anchor; objectness and classes as logits.

    An object belongs to the anchors that it is less than four times as large or small as along either side, in its own
    cell and the next one along each axis. The loss is 0.05·(1 − CIoU) as the mean over positives, the binary
    cross-entropy of objectness with the overlap as the mean over the cells of each map, and ½·C/80 times that of the
    classes as the mean over positives.
    """

    objectness_first = False
    measure = "ciou"
    ratio = 4.0

    def code(self, raw: Reals, cells: Cells) -> tuple[Reals, Reals]:
        p = sigmoid(raw)
        xy, wh = p[..., :2], p[..., 2:]
        boxes = np.concatenate([(2 * xy - 0.5 + cells.place) * cells.stride, (2 * wh) ** 2 * cells.anchor], axis=-1)
        slopes = [2 * xy * (1 - xy) * cells.stride, 8 * wh**2 * (1 - wh) * cells.anchor]
        return boxes, np.concatenate(slopes, axis=-1)

    def scores(self, said: Predictions) -> Reals:
        return sigmoid(said.objectness)[:, None] * sigmoid(said.classes)

    def assign(self, said: Predictions, boxes: Reals, cells: Cells, truth: Truth) -> Positives:
        found: list[NDArray[np.int64]] = []
        owners: list[NDArray[np.int64]] = []
        sides = truth.boxes[:, 2:] - truth.boxes[:, :2]
        middle = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2
        for level, (height, width) in enumerate(cells.grids):
            first = cells.first(level)
            anchors = cells.anchor[first : first + cells.anchors]
            times = sides[:, None] / anchors[None]
            fits = np.maximum(times, 1 / times).max(-1) < self.ratio
            place = middle / cells.stride[first]
            own = np.clip(np.floor(place), 0, [width - 1, height - 1]).astype(np.int64)
            step = np.where(place - own < 0.5, -1, 1)
            flat = np.zeros_like(step[:, 0])
            beside = [own, own + np.stack([step[:, 0], flat], 1), own + np.stack([flat, step[:, 1]], 1)]
            for cell in beside:
                inside = ((cell >= 0) & (cell < [width, height])).all(-1)
                who, anchor = np.nonzero(fits & inside[:, None])
                column, row = cell[who].T
                found.append(first + (row * width + column) * cells.anchors + anchor)
                owners.append(who)
        candidate, who = np.concatenate(found), np.concatenate(owners)
        met, _ = overlap(boxes[candidate], truth.boxes[who], self.measure)
        return Positives(candidate, truth.boxes[who], truth.classes[who], np.maximum(met, 0.0))

    def box_loss(self, met: Reals) -> tuple[float, Reals]:
        return 0.05 * float((1 - met).mean()), np.full(len(met), -0.05 / len(met))

    def other_loss(self, said: Predictions, cells: Cells, positives: Positives) -> tuple[float, Reals, Reals]:
        levels, chosen = len(cells.grids), positives.candidate
        balance = np.array(_BALANCE if levels == len(_BALANCE) else (1.0,) * levels)
        weight = balance[cells.level] / np.bincount(cells.level, minlength=levels)[cells.level]
        target = np.zeros(len(cells))
        np.maximum.at(target, chosen, positives.overlap)
        cost, slope = binary_cross_entropy(said.objectness, target)
        loss, objectness = float((weight * cost).sum()), weight * slope
        classes = np.zeros_like(said.classes)
        if len(chosen):
            many = said.classes.shape[1]
            wanted = np.zeros((len(chosen), many))
            wanted[np.arange(len(chosen)), positives.label] = 1.0
            class_cost, class_slope = binary_cross_entropy(said.classes[chosen], wanted)
            gain = 0.5 * many / 80 / class_cost.size
            loss += gain * float(class_cost.sum())
            np.add.at(classes, chosen, gain * class_slope)
        return loss, objectness, classes
