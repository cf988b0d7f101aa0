"""Training pictures in another way each epoch: drawn from (seed, epoch, number of the sample) alone.

So a run that is interrupted and continued sees the same pixels. What moves pixels is a `Placement`, which boxes, masks
and points follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgelora.media.placement import Pixels, Placement

IMAGE_KINDS = ("flip", "crop", "color")
_ZOOM = (0.8, 1.5)
_CONTRAST = (0.7, 1.4)
_BRIGHTNESS = 32.0
_STREAM = 0x696D67  # keeps these draws apart from others of the same seed


@dataclass(frozen=True)
class Variation:
    """One way of one picture: mirrored or not; `zoom` of the input, the rest of which lies at `shift` (x, y, from 0 to
    1); pixels p become contrast·(p − 128) + 128 + brightness.
    """

    flip: bool
    zoom: float
    shift: tuple[float, float]
    contrast: float
    brightness: float

    def place(self, placement: Placement) -> Placement:
        """Where the picture lies then."""
        height, width = placement.size
        z, (x, y) = self.zoom, self.shift
        placed = placement.then((z, z), (x * width * (1 - z), y * height * (1 - z)))
        return placed.flipped() if self.flip else placed

    def recolor(self, pixels: Pixels) -> Pixels:
        """The pixels, brighter or darker, with more or less contrast."""
        if self.contrast == 1 and not self.brightness:
            return pixels
        table = self.contrast * (np.arange(256, dtype=np.float32) - 128) + (128 + self.brightness)
        return np.clip(np.rint(table), 0, 255).astype(np.uint8)[pixels]


@dataclass(frozen=True)
class Augmentation:
    """What is varied, of `IMAGE_KINDS`, and the seed."""

    kinds: tuple[str, ...]
    seed: int

    def variation(self, epoch: int, number: int) -> Variation:
        """That of a sample in an epoch. What one kind draws does not depend on which others there are."""
        u = np.random.default_rng([self.seed, epoch, number, _STREAM]).random(6).tolist()
        crops, colors = "crop" in self.kinds, "color" in self.kinds
        return Variation(
            flip="flip" in self.kinds and u[0] < 0.5,
            zoom=_between(_ZOOM, u[1]) if crops else 1.0,
            shift=(u[2], u[3]) if crops else (0.0, 0.0),
            contrast=_between(_CONTRAST, u[4]) if colors else 1.0,
            brightness=_BRIGHTNESS * (2 * u[5] - 1) if colors else 0.0,
        )


def _between(limits: tuple[float, float], u: float) -> float:
    """From the lower to the upper limit, evenly in the logarithm."""
    low, high = map(math.log, limits)
    return math.exp(low + u * (high - low))
