"""The gradients of a batch's parts, each in an array of its own, and their sum.

Parts are computed at once, so none may write where another does; arrays are made once and used in every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgelora.flat import views_of
from edgelora.objectives import Floats
from edgelora.session import Places


@dataclass(frozen=True)
class Part:
    """Where a run leaves what it makes of a part: the gradients in `flat`, of which `places` has views, and `loss`."""

    flat: Floats
    views: dict[str, Floats]
    loss: Floats
    places: Places


class SummedGradients:
    """The gradients of inputs of these names and shapes, which are the outputs "grad.NAME" of a graph.

    `sum` is flat, `views` are of it, by the name of the input. `staying` are the inputs whose arrays are the same in
    each run; with `loss` the graph has an output of that name too.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], staying: frozenset[str], loss: bool) -> None:
        self._shapes, self._staying, self._loss = dict(shapes), staying, loss
        self._parts: list[Part] = []
        first = self._part(0)
        self.sum, self.views = first.flat, first.views

    def room(self, count: int, beside_the_sum: bool) -> list[Part]:
        """Where the gradients of so many parts go: beside the sum, or the first in its place."""
        first = int(beside_the_sum)
        return [self._part(first + place) for place in range(count)]

    def add(self, parts: Sequence[Part]) -> None:
        """Add those that are beside the sum."""
        for part in parts:
            if part.flat is not self.sum:
                self.sum += part.flat

    def _part(self, place: int) -> Part:
        while len(self._parts) <= place:
            flat = np.zeros(sum(int(np.prod(shape)) for shape in self._shapes.values()), np.float32)
            views = dict(zip(self._shapes, views_of(flat, list(self._shapes.values())), strict=True))
            outputs, loss = {f"grad.{name}": view for name, view in views.items()}, np.zeros((), np.float32)
            places = Places(outputs | ({"loss": loss} if self._loss else {}), self._staying)
            self._parts.append(Part(flat, views, loss, places))
        return self._parts[place]
