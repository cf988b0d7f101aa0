"""Masks of classes against each other: counts of pixels, intersection over union, Dice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]

Classes = NDArray[np.uint8]

IGNORED = 255
"""The class of a pixel that counts for nothing."""


def confusion(truth: Classes, predicted: Classes, classes: int) -> Counts:
    """How many pixels of class t (row) were predicted as p (column), `[classes, classes]`.

    `truth` and `predicted` hold classes, in the same shape; pixels where one of them is `IGNORED` are not counted.
    """
    counted = (truth != IGNORED) & (predicted != IGNORED)
    pairs = truth[counted].astype(np.int64) * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def iou(counts: Counts) -> Shares:
    """Intersection over union (Jaccard index) of each class, from its `confusion`; NaN where truth and prediction lack
    it.

    Of a data set it is that of all its pixels together, as PASCAL VOC and Cityscapes report it.
    """
    return _share(np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts))


def dice(counts: Counts) -> Shares:
    """Dice coefficient (F1) of each class, 2·|A∩B|/(|A| + |B|); NaN where truth and prediction lack the class."""
    return _share(2 * np.diag(counts), counts.sum(0) + counts.sum(1))


def mean_of_present(shares: Shares) -> float:
    """The mean over the classes that occur; NaN if none does."""
    present = shares[~np.isnan(shares)]
    return float(present.mean()) if present.size else float("nan")


def _share(part: Counts, whole: Counts) -> Shares:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
