"""What an adapter method is to the device: its tensors, what the graphs are fed, and the way back of gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import ConfigError
from edgelora.manifest import InsertionPoint

Floats = NDArray[np.float32]
Tensors = Mapping[str, Floats]
Shape = tuple[int | str, ...]
NOTHING: Tensors = MappingProxyType({})
BASE_WEIGHT, BASE_BIAS = "base_weight", "base_bias"  # inputs in the place of the base's own values
OTHER_BIAS = "other_bias"  # a bias of a module that the settings do not name


class BaseValues(Protocol):
    """What a bundle tells of the frozen weights (`Bundle`)."""

    def norms(self, low: Tensors) -> Mapping[str, Floats]:
        """The lengths of the columns of W + A·B' by point, from A and B' of each by name."""
        ...

    def values(self, names: Sequence[str]) -> Mapping[str, Floats]:
        """The base's own values by the names of the inputs that take their place: `{point}.base_weight`, …"""
        ...


class _Unknown:
    """A base of which nothing is known."""

    def norms(self, low: Tensors) -> Mapping[str, Floats]:
        raise ConfigError("the lengths of the base's columns are needed: give base=bundle")

    def values(self, names: Sequence[str]) -> Mapping[str, Floats]:
        if names:
            raise ConfigError(f"the base's own values are needed, as {names[0]}: give base=bundle")
        return {}


UNKNOWN: BaseValues = _Unknown()


class Method(Protocol):
    """One member of the adapter family. Its settings stand in the same file; settings are passed as `config`.

    A tensor at a point is named `{point}.{suffix}`; `disk` maps the suffixes to those of PEFT's files. `shared` names
    the tensors that belong to no point. `graphs` is the set of graphs (`Manifest.graph_set`) that the method's adapters
    run in.

    `base` is asked by the methods that need what the bundle tells of its weights.
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
        self, config: Any, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """Fresh tensors, with PEFT's distributions."""
        ...

    def feeds(
        self,
        config: Any,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        """The graph inputs at `points`, which the adapter joins; `into`, an earlier call's, may be written again."""
        ...

    def pullback(self, config: Any, tensors: Tensors, gradients: Tensors, base: BaseValues) -> dict[str, Floats]:
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


def no_graphs(method: Method) -> str:
    """What to do about a bundle in which adapters of a method cannot run."""
    return f"the bundle has no graphs for {method.graphs} adapters: convert with --methods {method.graphs}"


def no_prefix(method: Method) -> str:
    """What to do about adapters of a method whose graphs do not go on from a prefix."""
    return f"a prefix has no graphs for {method.graphs} adapters: leave train_last out"


def linear_only(kind: str, points: Sequence[InsertionPoint]) -> list[str]:
    """What is wrong with points that are convolutions, for a method (`kind`) that has no place for them."""
    return [
        f"{point.id} is a convolution, and {kind} is for linear products alone here: leave it out of target_modules"
        for point in points
        if point.kernel
    ]
