"""What segmentation asks of a batch: classes and weights of every pixel to feed, IoU to report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.media.image_inputs import ImageInputs
from edgelora.objectives import Array, Feeds, Floats
from edgelora.reference_losses import log_softmax
from edgelora.vision.mask_files import MaskSample
from edgelora.vision.masks import IGNORED, Classes, confusion, dice, iou, mean_of_present
from edgelora.vision.on_pictures import OnPictures
from edgelora.vision.resampling import classes_of_picture


class Segmentation(OnPictures):
    """Cross-entropy of a class per pixel, the mean over a picture's counted pixels, and `dice_weight` times 1 − Dice.

    `index` numbers the names of classes, `class_weights` `[classes]` multiply the cross-entropy of their pixels. Masks
    go where pictures go, the nearest pixel's class; what lies beside a picture counts for nothing. The metrics are of
    the pictures' own pixels, all together: the IoU of each class that occurs in masks or predictions, and the means of
    it and of Dice over these.
    """

    loss, metric, higher_is_better, wrong = "cross-entropy-dice", "mean_iou", True, "masks of a wrong size"

    def __init__(
        self,
        data: ImageInputs,
        samples: Sequence[MaskSample],
        index: Mapping[str, int],
        class_weights: Floats | None = None,
        dice_weight: float = 1.0,
    ) -> None:
        self.data, self.samples, self.index, self.dice_weight = data, samples, index, dice_weight
        classes = max(index.values()) + 1
        self._weight_of: Floats = np.zeros(IGNORED + 1, np.float32)
        self._weight_of[:classes] = 1 if class_weights is None else class_weights
        self._classes = classes

    def problems_of(self, row: int) -> list[str]:
        sample = self.samples[row]
        (height, width), (h, w) = sample.size, self.pictures.placement(row).source
        fits = (height, width) == (h, w)
        return [] if fits else [f"{sample.mask}: the mask is {width} × {height} pixels, its picture {w} × {h}"]

    def loss_inputs(self, rows: NDArray[np.int64], total: float) -> Feeds:
        labels = self._placed(rows)
        weight: Floats = self._weight_of[labels]
        sums: Floats = weight.sum((1, 2), keepdims=True)
        return {
            "labels": np.where(labels == IGNORED, 0, labels).astype(np.int64),
            "loss_weight": weight / np.float32(total) / np.where(sums > 0, sums, 1),
            "dice_weight": np.full(len(rows), self.dice_weight / total, np.float32),
        }

    def measured(self, outputs: Array, rows: NDArray[np.int64]) -> Array:
        """For each picture the counts of its `confusion`, flat, and its loss: `[rows, classes² + 1]`."""
        made = np.empty((len(rows), self._classes**2 + 1))
        labels = self._placed(rows)
        for i, row in enumerate(rows.tolist()):
            logits = outputs[i].astype(np.float64)
            seen = classes_of_picture(logits, self.pictures.placement(row))
            counts = confusion(self.samples[int(row)].classes(self.index), seen, self._classes)
            made[i, :-1], made[i, -1] = counts.ravel(), self._loss(logits, labels[i])
        return made

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        made = np.concatenate(outputs)
        counts = made[:, :-1].sum(0).astype(np.int64).reshape(self._classes, self._classes)
        found = iou(counts)
        return {
            "loss": float(made[:, -1].mean()),
            "mean_iou": mean_of_present(found),
            "mean_dice": mean_of_present(dice(counts)),
            "pixel_accuracy": float(np.trace(counts) / max(counts.sum(), 1)),
            **{f"iou {name}": float(found[i]) for name, i in self.index.items() if not np.isnan(found[i])},
        }

    def _placed(self, rows: NDArray[np.int64]) -> Classes:
        """The classes of the input's pixels `[rows, height, width]`."""
        return np.stack([
            self.pictures.placement(row).warp(self.samples[int(row)].classes(self.index), IGNORED, "nearest")
            for row in rows.tolist()
        ])  # fmt: skip

    def _loss(self, logits: NDArray[np.float64], labels: Classes) -> float:
        """The loss of one picture, as the training graph has it."""
        weight = self._weight_of[labels].astype(np.float64)
        seen = weight > 0
        log_p = log_softmax(np.moveaxis(logits, 0, -1)[seen])
        truth = np.eye(self._classes)[labels[seen]]
        nll = -(log_p * truth).sum(-1)
        p = np.exp(log_p)
        share = (2 * (p * truth).sum(0) + 1) / ((p + truth).sum(0) + 1)
        return float((weight[seen] * nll).sum() / max(weight.sum(), 1e-12) + self.dice_weight * (1 - share.mean()))
