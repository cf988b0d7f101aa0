"""Detectors without anchors, whose every cell tells one box: FastestDet's and YOLOX's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgelora.vision.average_precision import Numbers, Truth
from edgelora.vision.boxes import Reals, overlap, overlaps
from edgelora.vision.detectors.cells import NOTHING, Cells, Positives, Predictions
from edgelora.vision.detectors.losses import binary_cross_entropy, cross_entropy, negative_log, sigmoid, softmax

_LARGEST_EXPONENT = 20.0


@dataclass(frozen=True)
class FastestDet:
    """One map; centre (tanh t + cell)·stride, sides σ(t)·input (github.com/dog-qiuqiu/FastestDet).

    The four cells around an object's centre answer for it, those that meet it no worse than the mean. The loss is
    8·(1 − CIoU) + 16·½(p − overlap)² + −log(class), each a mean over the positives; in the second, all other cells have
    three quarters of the weight. Where `activated`, the network itself ends in the sigmoid of objectness and the
    softmax of the classes.
    """

    activated: bool = False
    objectness_first = True
    measure = "ciou"

    def code(self, raw: Reals, cells: Cells) -> tuple[Reals, Reals]:
        moved, share = np.tanh(raw[..., :2]), sigmoid(raw[..., 2:])
        boxes = np.concatenate([(moved + cells.place) * cells.stride, share * cells.size], axis=-1)
        slopes = np.concatenate([(1 - moved**2) * cells.stride, share * (1 - share) * cells.size], axis=-1)
        return boxes, slopes

    def scores(self, said: Predictions) -> Reals:
        objectness, classes = said.objectness, said.classes
        if not self.activated:
            objectness, classes = sigmoid(objectness), softmax(classes)
        return objectness[:, None] * classes

    def assign(self, said: Predictions, boxes: Reals, cells: Cells, truth: Truth) -> Positives:
        height, width = cells.grids[0]
        centre = (truth.boxes[:, :2] + truth.boxes[:, 2:]) / 2 / cells.stride[0]
        corner = np.clip(np.floor(centre), 0, [width - 1, height - 1]).astype(np.int64)
        near = corner[:, None] + np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
        who, which = np.nonzero((near < [width, height]).all(-1))
        column, row = near[who, which].T
        candidate = row * width + column
        met, _ = overlap(boxes[candidate], truth.boxes[who], self.measure)
        kept = met >= met.mean()
        return Positives(candidate[kept], truth.boxes[who[kept]], truth.classes[who[kept]], met[kept])

    def box_loss(self, met: Reals) -> tuple[float, Reals]:
        return 8.0 * float((1 - met).mean()), np.full(len(met), -8.0 / len(met))

    def other_loss(self, said: Predictions, cells: Cells, positives: Positives) -> tuple[float, Reals, Reals]:
        count, chosen = len(cells), positives.candidate
        p = said.objectness if self.activated else sigmoid(said.objectness)
        target, weight = np.zeros(count), np.full(count, 0.75 / count)
        np.maximum.at(target, chosen, positives.overlap)
        weight[chosen] = 0.25 / max(len(chosen), 1)
        loss = 16.0 * float((weight * 0.5 * (p - target) ** 2).sum())
        objectness = 16.0 * weight * (p - target) * (1.0 if self.activated else p * (1 - p))
        classes = np.zeros_like(said.classes)
        if len(chosen):
            cost, slope = (negative_log if self.activated else cross_entropy)(said.classes[chosen], positives.label)
            loss += float(cost.mean())
            np.add.at(classes, chosen, slope / len(chosen))
        return loss, objectness, classes


@dataclass(frozen=True)
class Yolox:
    """Maps of several scales; centre (t + cell)·stride, sides exp(t)·stride (arXiv:2107.08430).

    SimOTA assigns to an object the cells in it or near its centre that cost least, as many as their ten best overlaps
    sum up to. The loss is 5·(1 − IoU²) + the binary cross-entropies of objectness and of the classes, whose targets are
    the overlaps; each a sum over the number of positives.
    """

    objectness_first = False
    measure = "iou"
    radius = 2.5  # cells around a centre

    def code(self, raw: Reals, cells: Cells) -> tuple[Reals, Reals]:
        sides = np.exp(np.minimum(raw[..., 2:], _LARGEST_EXPONENT)) * cells.anchor
        boxes = np.concatenate([(raw[..., :2] + cells.place) * cells.stride, sides], axis=-1)
        return boxes, np.concatenate([np.broadcast_to(cells.stride, sides.shape), sides], axis=-1)

    def scores(self, said: Predictions) -> Reals:
        return sigmoid(said.objectness)[:, None] * sigmoid(said.classes)

    def assign(self, said: Predictions, boxes: Reals, cells: Cells, truth: Truth) -> Positives:
        here = (cells.place + 0.5) * cells.stride
        inside = ((here[None] > truth.boxes[:, None, :2]) & (here[None] < truth.boxes[:, None, 2:])).all(-1)
        away = np.abs(here[None] - (truth.boxes[:, None, :2] + truth.boxes[:, None, 2:]) / 2)
        near = (away < self.radius * cells.stride[None]).all(-1)
        among = np.flatnonzero((inside | near).any(0))
        if not len(among):
            return NOTHING
        met = overlaps(truth.boxes, boxes[among])
        central = np.logical_and(inside, near)[:, among]
        cost = self._class_cost(self.scores(said)[among], truth.classes) - 3.0 * np.log(met + 1e-8)
        cost = np.where(central, cost, cost + 1e5)
        taken = np.zeros_like(cost, np.bool_)
        for g in range(len(cost)):
            many = max(int(np.sort(met[g])[::-1][:10].sum()), 1)
            taken[g, np.argsort(cost[g], kind="stable")[:many]] = True
        several = taken.sum(0) > 1
        taken[:, several] = np.arange(len(cost))[:, None] == cost[:, several].argmin(0)[None]
        who, which = np.nonzero(taken)
        return Positives(among[which], truth.boxes[who], truth.classes[who], met[who, which])

    def _class_cost(self, scores: Reals, labels: Numbers) -> Reals:
        """The binary cross-entropy of √score `[n, classes]` with each of the labels `[m]`: `[m, n]`."""
        p = np.clip(np.sqrt(scores), 1e-12, 1 - 1e-12)
        miss = -np.log1p(-p)
        return miss.sum(1) + (-np.log(p) - miss)[:, labels].T

    def box_loss(self, met: Reals) -> tuple[float, Reals]:
        return 5.0 * float((1 - met**2).mean()), -10.0 * met / len(met)

    def other_loss(self, said: Predictions, cells: Cells, positives: Positives) -> tuple[float, Reals, Reals]:
        chosen, count = positives.candidate, max(len(positives.candidate), 1)
        target = np.zeros(len(cells))
        target[chosen] = 1.0
        cost, objectness = binary_cross_entropy(said.objectness, target)
        wanted = np.zeros((len(chosen), said.classes.shape[1]))
        wanted[np.arange(len(chosen)), positives.label] = positives.overlap
        class_cost, slope = binary_cross_entropy(said.classes[chosen], wanted)
        classes = np.zeros_like(said.classes)
        classes[chosen] = slope / count
        return float(cost.sum() + class_cost.sum()) / count, objectness / count, classes
