"""Average precision of detections, as COCO's evaluation defines it (cocodataset.org/#detection-eval)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelora.vision.boxes import Reals, overlaps

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # detections of a class in a picture that count


@dataclass(frozen=True)
class Truth:
    """What is in a picture: `boxes` `[n, 4]`, their `classes` `[n]`, and whether each is `ignored` `[n]`.

    An ignored box is a region (a crowd, or an object too hard to tell) in which detections count neither way.
    """

    boxes: Reals
    classes: Numbers
    ignored: Flags


@dataclass(frozen=True)
class Found:
    """What is detected in a picture: `boxes` `[n, 4]`, `classes` `[n]` and `scores` `[n]`."""

    boxes: Reals
    classes: Numbers
    scores: Reals


def average_precision(
    found: Sequence[Found], truths: Sequence[Truth], classes: int, thresholds: Reals = THRESHOLDS
) -> Reals:
    """Average precision `[thresholds, classes]`; NaN for a class that no picture has.

    A detection is right if it overlaps a box of its class by at least the threshold and no better one has taken that
    box. Precision is taken at 101 recalls, each the best at this recall or beyond.
    """
    result = np.full((len(thresholds), classes), np.nan)
    for label in range(classes):
        parts = [_matches(f, t, label, thresholds) for f, t in zip(found, truths, strict=True)]
        positives = sum(int((~t.ignored[t.classes == label]).sum()) for t in truths)
        if not positives:
            continue
        order = np.argsort(-np.concatenate([scores for scores, _, _ in parts]), kind="stable")
        right = np.concatenate([hit for _, hit, _ in parts], axis=1)[:, order]
        counted = ~np.concatenate([ignored for _, _, ignored in parts], axis=1)[:, order]
        result[:, label] = [_area(r & c, ~r & c, positives) for r, c in zip(right, counted, strict=True)]
    return result


def summary(found: Sequence[Found], truths: Sequence[Truth], classes: int) -> dict[str, float]:
    """`AP50`, at an overlap of one half, and `AP`, the mean over 0.5, 0.55 … 0.95; both means over the classes."""
    precision = average_precision(found, truths, classes)
    present = ~np.isnan(precision[0])
    if not present.any():
        return {"AP50": 0.0, "AP": 0.0}
    return {"AP50": float(precision[0, present].mean()), "AP": float(precision[:, present].mean())}


def _matches(found: Found, truth: Truth, label: int, thresholds: Reals) -> tuple[Reals, Flags, Flags]:
    """The scores `[n]` of a class's detections, best first, whether each is right and whether it is ignored
    `[thresholds, n]`."""
    mine, theirs = np.flatnonzero(found.classes == label), np.flatnonzero(truth.classes == label)
    mine = mine[np.argsort(-found.scores[mine], kind="stable")][:MOST]
    theirs = theirs[np.argsort(truth.ignored[theirs], kind="stable")]
    ignored = truth.ignored[theirs]
    meet = overlaps(found.boxes[mine], truth.boxes[theirs], ignored)
    right = np.zeros((len(thresholds), len(mine)), np.bool_)
    passed = np.zeros_like(right)
    for i, threshold in enumerate(thresholds):
        taken = np.zeros(len(theirs), np.bool_)
        for d in range(len(mine)):
            free = (meet[d] >= min(threshold, 1 - 1e-10)) & (~taken | ignored)
            choice = free & ~ignored if (free & ~ignored).any() else free
            if choice.any():
                best = int(len(theirs) - 1 - np.argmax(np.where(choice, meet[d], -1.0)[::-1]))  # of equals the last
                taken[best] = right[i, d] = True
                passed[i, d] = ignored[best]
    return found.scores[mine], right, passed


def _area(right: Flags, wrong: Flags, positives: int) -> float:
    """The mean of the precisions at the recalls, of detections that are right or wrong, best first."""
    hits, misses = np.cumsum(right), np.cumsum(wrong)
    recall = hits / positives
    precision = hits / np.maximum(hits + misses, 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")
    return float(np.append(precision, 0.0)[place].mean())
