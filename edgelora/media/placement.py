"""Where a picture lies in a model's input: a map of each axis that points, boxes and pixels follow."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FITS = ("stretch", "crop", "letterbox")
RESAMPLES = ("nearest", "bilinear", "bicubic")
_EPSILON = 1e-6  # of a pixel: what rounding may move an edge

Reals = NDArray[np.float64]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Placement:
    """The map x' = scale·x + offset of either axis, from a picture's pixels to an input's.

    `source` and `size` are the picture's and the input's height and width; `scale` and `offset` are of x and of y, a
    negative scale mirrors. Pixel i covers [i, i + 1]: corners are whole numbers, centres lie between.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    @classmethod
    def fitted(cls, source: tuple[int, int], size: tuple[int, int], fit: str, share: float = 1.0) -> Placement:
        """A picture put into an input: stretched to it; cropped, the middle of the picture that `share` of its shorter
        side spans (as torchvision's Resize and CenterCrop with share = crop/resize); or whole, with a border.
        """
        (h, w), (height, width) = source, size
        if fit == "stretch":
            return cls(source, size, (width / w, height / h), (0.0, 0.0))
        if fit == "crop":
            s = max(width / w, height / h) / share
            return cls(source, size, (s, s), ((width - s * w) / 2, (height - s * h) / 2))
        s = min(width / w, height / h)
        inner_w, inner_h = max(1, round(s * w)), max(1, round(s * h))
        return cls(source, size, (inner_w / w, inner_h / h), ((width - inner_w) // 2, (height - inner_h) // 2))

    def then(self, scale: tuple[float, float], offset: tuple[float, float]) -> Placement:
        """This map and another after it, inside the input."""
        (sx, sy), (tx, ty) = self.scale, self.offset
        return replace(
            self,
            scale=(scale[0] * sx, scale[1] * sy),
            offset=(scale[0] * tx + offset[0], scale[1] * ty + offset[1]),
        )

    def flipped(self) -> Placement:
        """Mirrored, left for right."""
        return self.then((-1.0, 1.0), (self.size[1], 0.0))

    def points(self, points: Reals) -> Reals:
        """Points `[..., 2]` (x, y) of the picture, in the input."""
        return np.asarray(points, np.float64) * self.scale + self.offset

    def points_back(self, points: Reals) -> Reals:
        """Points `[..., 2]` of the input, in the picture."""
        return (np.asarray(points, np.float64) - self.offset) / self.scale

    def boxes(self, boxes: Reals) -> Reals:
        """Boxes `[..., 4]` (left, top, right, bottom) of the picture, in the input. They may reach beyond it."""
        return _upright(self.points(np.asarray(boxes, np.float64).reshape(*np.shape(boxes)[:-1], 2, 2)))

    def boxes_back(self, boxes: Reals) -> Reals:
        """Boxes `[..., 4]` of the input, in the picture."""
        return _upright(self.points_back(np.asarray(boxes, np.float64).reshape(*np.shape(boxes)[:-1], 2, 2)))

    def warp(
        self, pixels: Pixels, fill: int = 0, resample: str = "bilinear", extent: tuple[float, float] | None = None
    ) -> Pixels:
        """The input's pixels `[height, width(, channels)]`; `fill` is where no picture is.

        `pixels` `[h, w(, channels)]` are the picture, in its own size or in any other; `extent` says how many rows and
        columns of them it takes, if not all. Where it gets smaller, each pixel is a mean over what it covers ("nearest"
        takes one).
        """
        from PIL import Image

        h, w = extent or pixels.shape[:2]
        columns, left, right = self._covered(0, w)
        rows, top, bottom = self._covered(1, h)
        out = np.full((*self.size, *pixels.shape[2:]), fill, np.uint8)
        if not columns or not rows:
            return out
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
        made = image.resize((len(columns), len(rows)), Image.Resampling[resample.upper()], (left, top, right, bottom))
        part = np.asarray(made).reshape(len(rows), len(columns), *pixels.shape[2:])
        part = part[:: -1 if self.scale[1] < 0 else 1, :: -1 if self.scale[0] < 0 else 1]
        out[rows.start : rows.stop, columns.start : columns.stop] = part
        return out

    def _covered(self, axis: int, stored: float) -> tuple[range, float, float]:
        """The input's pixels that lie wholly in the picture, and the span of `stored` pixels of it that they show."""
        scale, offset, length = self.scale[axis], self.offset[axis], self.source[1 - axis]
        low, high = sorted((offset, offset + scale * length))
        first = max(0, math.ceil(low - _EPSILON))
        last = min(self.size[1 - axis], math.floor(high + _EPSILON))
        ends = sorted(((first - offset) / scale, (last - offset) / scale))
        start, stop = (min(max(end * stored / length, 0.0), stored) for end in ends)
        return range(first, last), start, stop


def _upright(corners: Reals) -> Reals:
    """Boxes of two corners `[..., 2, 2]` each, the lesser one first."""
    return np.concatenate([corners.min(-2), corners.max(-2)], -1)
