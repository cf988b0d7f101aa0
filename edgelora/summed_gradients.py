"""The gradients of a batch's parts, each in an array of its own, and their sum.

Parts are computed at once, so none may write where another does; arrays are made once and used in every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelora.flat import views_of
from edgelora.objectives import Floats

Part = tuple[Floats, list[Floats]]  # flat, and its views in the shapes of what is fed


class SummedGradients:
    """`sum` is flat, `views` are of it, in these shapes."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._shapes = list(shapes)
        self._parts: list[Part] = []
        self.sum, self.views = self._part(0)

    def room(self, count: int, beside_the_sum: bool) -> list[Part]:
        """Where the gradients of so many parts go: beside the sum, or the first in its place."""
        first = int(beside_the_sum)
        return [self._part(first + place) for place in range(count)]

    def add(self, parts: Sequence[Part]) -> None:
        """Add those that are beside the sum."""
        for flat, _ in parts:
            if flat is not self.sum:
                self.sum += flat

    def _part(self, place: int) -> Part:
        while len(self._parts) <= place:
            flat = np.zeros(sum(int(np.prod(shape)) for shape in self._shapes), np.float32)
            self._parts.append((flat, views_of(flat, self._shapes)))
        return self._parts[place]
