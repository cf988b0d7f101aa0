"""Points as heatmaps and back, and how near predicted points are: PCK and OKS.

Points are `[..., 2]` (x, y) in the map's own unit: place (column j, row i) has its centre at (j + ½, i + ½), so that a
map of width w covers 0 to w. Multiplied by the stride they are positions in the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

_NEAR = 2  # places on each side of a peak that its score sums

# How far annotators of COCO's persons are apart, as a share of the root of a person's area (cocodataset.org).
_OF_PAIRS = {
    "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062, "hip": 0.107, "knee": 0.087,
    "ankle": 0.089,
}  # fmt: skip
COCO_SIGMAS = {"nose": 0.026} | {f"{side}_{part}": s for part, s in _OF_PAIRS.items() for side in ("left", "right")}


def gaussian_maps(points: Array, height: int, width: int, sigma: float) -> NDArray[np.float32]:
    """A distribution over the places for each of `points` `[..., 2]`: `[..., height, width]`, falling off as a
    Gaussian.

    `sigma` is in places. Each map sums to 1, also where the point lies near or beyond the border.
    """
    x: Floats = points[..., 0].astype(np.float64)
    y: Floats = points[..., 1].astype(np.float64)
    return (_bell(y, height, sigma)[..., :, None] * _bell(x, width, sigma)[..., None, :]).astype(np.float32)


def _bell(at: Floats, size: int, sigma: float) -> Floats:
    exponent = -(((np.arange(size) + 0.5 - at[..., None]) / sigma) ** 2) / 2
    bell = np.exp(exponent - exponent.max(-1, keepdims=True))
    return bell / bell.sum(-1, keepdims=True)


def decode(logits: Array) -> tuple[Floats, Floats]:
    """Where each of the maps `[..., height, width]` has its peak: points `[..., 2]`, and their scores `[...]`.

    The maps are logits of a distribution over the places. Where that is a Gaussian, logits are a parabola along each
    axis: the peak between places is the apex through the highest place and its neighbours (after Zhang et al., DARK,
    arXiv:1910.06278, with the axes apart). The score is the probability of the 5 × 5 places around.
    """
    height, width = logits.shape[-2:]
    flat: Floats = logits.reshape(-1, height, width).astype(np.float64)
    best = np.asarray(flat.reshape(len(flat), -1).argmax(-1), np.int64)
    rows, columns = best // width, best % width
    every = np.arange(len(flat))
    x: Floats = columns + 0.5 + _apex(flat[every, rows], columns)
    y: Floats = rows + 0.5 + _apex(flat[every, :, columns], rows)
    p = np.exp(flat - flat.max((1, 2), keepdims=True))
    p /= p.sum((1, 2), keepdims=True)
    near_row: NDArray[np.bool_] = np.abs(np.arange(height, dtype=np.int64) - rows[:, None]) <= _NEAR
    near_column: NDArray[np.bool_] = np.abs(np.arange(width, dtype=np.int64) - columns[:, None]) <= _NEAR
    scores = (p * near_row[:, :, None] * near_column[:, None, :]).sum((1, 2))
    shape = logits.shape[:-2]
    return np.stack([x, y], -1).reshape(*shape, 2), scores.reshape(shape)


def _apex(lines: Floats, at: NDArray[np.int64]) -> Floats:
    """How far from the highest place `at` of each line the apex of the parabola lies, within ±½; 0 at the ends."""
    inner = (at > 0) & (at < lines.shape[1] - 1)
    here = np.where(inner, at, 0)
    every = np.arange(len(lines))
    before, peak, after = (lines[every, np.clip(here + step, 0, lines.shape[1] - 1)] for step in (-1, 0, 1))
    bend = 2 * peak - before - after
    shift = np.where(inner & (bend > 0), (after - before) / (2 * np.where(bend > 0, bend, 1.0)), 0.0)
    return np.clip(shift, -0.5, 0.5)


def distances(predicted: Array, truth: Array) -> Floats:
    """Euclidean distances of points `[..., 2]`, `[...]`."""
    return np.sqrt(((predicted.astype(np.float64) - truth) ** 2).sum(-1))


def sides(truth: Array, visible: NDArray[np.bool_]) -> Floats:
    """Width and height of the box around the visible points `[n, k, 2]` of each sample, `[n, 2]`; NaN where none is."""
    some = np.asarray(visible.any(1))
    low = np.where(visible[..., None], truth, np.inf).min(1)
    high = np.where(visible[..., None], truth, -np.inf).max(1)
    return np.where(some[:, None], high, np.nan) - np.where(some[:, None], low, np.nan)


def pck(predicted: Array, truth: Array, visible: NDArray[np.bool_], lengths: Array, share: float = 0.1) -> float:
    """The share of visible points `[n, k, 2]` that are predicted within `share` of their sample's length `[n]`.

    PCK of Yang and Ramanan (2013), whose lengths are the longer side of the box around a person (`sides`). NaN if no
    point is visible.
    """
    hit = distances(predicted, truth) <= share * lengths[:, None]
    return float(hit[visible].mean()) if visible.any() else float("nan")


def oks(predicted: Array, truth: Array, visible: NDArray[np.bool_], areas: Array, sigmas: Array) -> Floats:
    """Object keypoint similarity of each sample `[n]`: the mean over visible points of exp(−d²/(2·area·(2σ)²)).

    COCO's: `areas` `[n]` are in squared pixels, `sigmas` `[k]` the spread of annotators. NaN where no point is visible.
    """
    variances = (2 * np.asarray(sigmas, np.float64)) ** 2
    spread = 2 * (np.asarray(areas, np.float64)[:, None] + np.spacing(1)) * variances
    alike = np.where(visible, np.exp(-(distances(predicted, truth) ** 2) / spread), 0.0)
    count = visible.sum(1)
    return np.where(count > 0, alike.sum(1) / np.maximum(count, 1), np.nan)


def sigmas_of(names: Sequence[str]) -> Floats:
    """The spreads for OKS of points of these names: COCO's, if all are points of its persons, else their mean."""
    mean = sum(COCO_SIGMAS.values()) / len(COCO_SIGMAS)
    known = set(names) <= COCO_SIGMAS.keys()
    return np.array([COCO_SIGMAS[name] if known else mean for name in names], np.float64)
