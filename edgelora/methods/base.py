"""What an adapter method is to the device: its tensors, what the graphs are fed, and the way back of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgelora.manifest import InsertionPoint

Floats = NDArray[np.float32]
Tensors = Mapping[str, Floats]
Shape = tuple[int | str, ...]
NOTHING: Tensors = MappingProxyType({})
Norms = Callable[[Tensors], Mapping[str, Floats]]


class Method(Protocol):
    """One member of the adapter family. Its settings stand in the same file; settings are passed as `config`.

    A tensor at a point is named `{point}.{suffix}`; `disk` maps the suffixes to those of PEFT's files. `shared` names
    the tensors that belong to no point. `graphs` is the set of graphs (`Manifest.graph_set`) that the method's adapters
    run in.

    `norms` tells how long the columns of W + A·B' are, by point, from A and B' of each by name (`Bundle.norms`); DoRA
    alone asks, and refuses None.
    """

    graphs: str
    disk: Mapping[str, str]
    shared: tuple[str, ...]

    def shapes(self, config: Any, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        """The shapes in memory of all tensors of an adapter that joins `points`; a name where a size is left open."""
        ...

    def problems(self, config: Any, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        """What is wrong with an adapter at `points` beyond the shapes of single tensors; `tensors` may be empty."""
        ...

    def new(
        self, config: Any, points: Sequence[InsertionPoint], rng: np.random.Generator, norms: Norms | None
    ) -> dict[str, Floats]:
        """Fresh tensors, with PEFT's distributions."""
        ...

    def feeds(
        self,
        config: Any,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        norms: Norms | None,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        """The graph inputs at `points`, which the adapter joins; `into`, an earlier call's, may be written again."""
        ...

    def pullback(self, config: Any, tensors: Tensors, gradients: Tensors, norms: Norms | None) -> dict[str, Floats]:
        """The gradients of the tensors that are trained, from those of all graph inputs that `feeds` makes.

        The arrays given may be written.
        """
        ...

    def decisive(self, config: Any, points: Sequence[str]) -> tuple[object, ...]:
        """What the settings say that decides what given tensors at `points` compute."""
        ...

    def is_trained(self, name: str) -> bool:
        """Whether a tensor learns; the others stay as they were made."""
        ...

    def to_disk(self, config: Any, name: str, tensor: Floats) -> Floats:
        """A tensor in PEFT's orientation."""
        ...

    def from_disk(self, config: Any, name: str, tensor: Floats) -> Floats:
        """A tensor of PEFT's in the graph's orientation, whatever its shape."""
        ...


def split_name(name: str) -> tuple[str, str]:
    """A tensor's point and suffix."""
    point, _, suffix = name.rpartition(".")
    return point, suffix


def linear_only(kind: str, points: Sequence[InsertionPoint]) -> list[str]:
    """What is wrong with points that are convolutions, for a method (`kind`) that has no place for them."""
    return [
        f"{point.id} is a convolution, and {kind} is for linear products alone here: leave it out of target_modules"
        for point in points
        if point.kernel
    ]
