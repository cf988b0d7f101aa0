"""What keypoint detection asks of a batch: a heatmap for each point to feed, PCK and OKS to report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.media.image_inputs import ImageInputs
from edgelora.media.placement import Placement
from edgelora.objectives import Array, Feeds
from edgelora.reference_losses import log_softmax
from edgelora.vision.keypoint_files import KeypointSample
from edgelora.vision.keypoints import decode, distances, gaussian_maps, oks, pck, sides, sigmas_of
from edgelora.vision.on_pictures import OnPictures

Reals = NDArray[np.float64]
SHARES = (0.05, 0.1, 0.2)


class Keypoints(OnPictures):
    """Cross-entropy of where each visible point is, over the places of its map, against a Gaussian of `sigma` places.

    `index` numbers the names of points, `maps` is the height and width of a map. `swapped` names for a point the one
    that takes its place in a mirrored picture. PCK, OKS and the error, in pixels, are of the pictures' own pixels.
    PCK's length is the longer side of the box around a picture's visible points, OKS's area is that of the box; where
    they are nothing, as around one point alone, the mean of the other pictures'.
    """

    loss, metric, higher_is_better, wrong = "heatmap", "pck@0.1", True, "points outside"

    def __init__(
        self,
        data: ImageInputs,
        samples: Sequence[KeypointSample],
        index: Mapping[str, int],
        maps: tuple[int, int],
        sigma: float = 0.6,
        swapped: Mapping[str, str] | None = None,
    ) -> None:
        self.samples = samples
        self.data, self.maps, self.sigma, self.index = data, maps, sigma, index
        self.points = np.full((len(samples), max(index.values()) + 1, 2), np.nan)
        for row, sample in enumerate(samples):
            for point in sample.points:
                self.points[row, index[point.name]] = point.x, point.y
        self._mirrored = np.arange(self.points.shape[1])
        for name, other in (swapped or {}).items():
            self._mirrored[index[name]] = index[other]

    def problems_of(self, row: int) -> list[str]:
        sample, (height, width) = self.samples[row], self.pictures.placement(row).source
        return [
            f"{sample.path}: the point {p.name!r} lies at ({p.x:g}, {p.y:g}), outside of its {width} × {height} pixels"
            for p in sample.points
            if not (0 <= p.x <= width and 0 <= p.y <= height)
        ]

    def weight(self, rows: NDArray[np.int64]) -> float:
        return float(self.visible[rows].sum()) or 1.0

    @property
    def visible(self) -> NDArray[np.bool_]:
        """Which points each sample has, `[samples, points]`."""
        return ~np.isnan(self.points[..., 0])

    def loss_inputs(self, rows: NDArray[np.int64], total: float) -> Feeds:
        placed = self._placed(rows)
        height, width = self.pictures.encoder.settings.size
        inside = np.asarray(((placed >= 0) & (placed <= (width, height))).all(-1))
        return {
            "targets": self._targets(np.where(inside[..., None], placed, 0.0)),
            "loss_weight": np.asarray(inside / total, np.float32),
        }

    def measured(self, outputs: Array, rows: NDArray[np.int64]) -> Array:
        """Of each picture's points x and y in its own pixels, and their losses: `[rows, points, 3]`."""
        found, _ = decode(outputs)
        targets = self._targets(np.nan_to_num(self._placed(rows)))
        flat = (*outputs.shape[:2], -1)
        losses = -(targets.reshape(flat) * log_softmax(outputs.reshape(flat).astype(np.float64))).sum(-1)
        return np.concatenate([self.points_back(found, rows), losses[..., None]], -1)

    def metrics(self, outputs: Sequence[Array], rows: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        made, order = np.concatenate(outputs), np.concatenate(rows)
        truth, visible = self.points[order], self.visible[order]
        around, predicted = sides(truth, visible), made[..., :2].astype(np.float64)
        lengths, areas = _or_mean(around.max(1)), _or_mean(around.prod(1))
        alike = oks(predicted, truth, visible, areas, sigmas_of(sorted(self.index, key=lambda name: self.index[name])))
        gaps = distances(predicted, truth)[visible]
        return {
            "loss": float(made[..., 2][visible].mean()),
            **{f"pck@{share:g}": pck(predicted, truth, visible, lengths, share) for share in SHARES},
            "oks": float(np.nanmean(alike)),
            "error_mean": float(gaps.mean()),
            "error_median": float(np.median(gaps)),
        }

    def points_back(self, found: Reals, rows: NDArray[np.int64]) -> Reals:
        """Points `[rows, points, 2]` of the maps, in the pictures' pixels."""
        return np.stack([
            on_picture(points, self.maps, self.pictures.placement(row))
            for points, row in zip(found, rows.tolist(), strict=True)
        ])  # fmt: skip

    def _placed(self, rows: NDArray[np.int64]) -> Reals:
        """The points in the input's pixels, those of a mirrored picture under the names that they have there."""
        made = np.empty((len(rows), *self.points.shape[1:]))
        for i, row in enumerate(rows.tolist()):
            placement = self.pictures.placement(row)
            points = placement.points(self.points[row])
            made[i] = points[self._mirrored] if placement.scale[0] < 0 else points
        return made

    def _targets(self, placed: Reals) -> NDArray[np.float32]:
        height, width = self.pictures.encoder.settings.size
        return gaussian_maps(placed * (self.maps[1] / width, self.maps[0] / height), *self.maps, self.sigma)


def on_picture(points: Reals, maps: tuple[int, int], placement: Placement) -> Reals:
    """Points `[..., 2]` of a map of this height and width, in the pixels of a picture that lies so in the input."""
    (height, width), (h, w) = placement.size, maps
    return placement.points_back(points * (width / w, height / h))


def _or_mean(of_pictures: Reals) -> Reals:
    """What is nothing, or not known, is taken for the mean of the others; for 0 if there are none."""
    some = of_pictures > 0
    return np.where(some, of_pictures, of_pictures[some].mean() if some.any() else 0.0)
