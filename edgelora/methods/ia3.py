"""IA³: a module's output, or the input of a feed-forward one, times a vector (Liu et al. 2022, arXiv:2205.05638).

The graph takes a vector on either side of every product; the one that the adapter does not have is fed as ones. ia3_l
is `[out, 1]`, or `[1, in]` of a feed-forward module; of a convolution `[1, channels, 1, ...]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from edgelora.config import AdapterConfig, Patterns, pattern_problems
from edgelora.manifest import InsertionPoint
from edgelora.methods.base import NOTHING, BaseValues, Floats, Method, Shape, Tensors, split_name
from edgelora.patterns import fullmatch

VECTOR, INTO, OUT = "ia3_l", "ia3_in", "ia3_out"


@dataclass(frozen=True)
class IA3Config(AdapterConfig):
    """Settings of an IA³ adapter (peft.IA3Config).

    `feedforward_modules` (a tuple of names, or a regular expression) says which of the modules are scaled at their
    input; the others are at their output. None, as ours, is none of them.

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str] = "IA3"
    without_effect: ClassVar[frozenset[str]] = frozenset({"init_ia3_weights"})
    unwritten: ClassVar[frozenset[str]] = frozenset({"layers_to_transform", "layers_pattern"})

    feedforward_modules: Patterns = None

    def problems(self) -> list[str]:
        return [*super().problems(), *pattern_problems("feedforward_modules", self.feedforward_modules)]

    def is_feedforward(self, point_id: str) -> bool:
        """Whether the vector stands at the module's input: as PEFT has it, a name is any ending of the id."""
        modules = self.feedforward_modules
        if isinstance(modules, str):
            return fullmatch(modules, point_id)
        return any(point_id.endswith(name) for name in modules or ())

    def renamed(self, ids: Mapping[str, str]) -> Self:
        feedforward = tuple(new for old, new in ids.items() if self.is_feedforward(old))
        return replace(super().renamed(ids), feedforward_modules=feedforward or None)

    def to_peft(self, task_type: str | None, points: Sequence[str] | None = None) -> dict[str, Any]:
        """PEFT wants `feedforward_modules` to be some of `target_modules`."""
        body = {"fan_in_fan_out": False, "init_ia3_weights": True, **super().to_peft(task_type, points)}
        if points is not None:
            body["feedforward_modules"] = sorted(point for point in points if self.is_feedforward(point))
        return body


class Ia3:
    """Rescaled activations."""

    graphs = "ia3"
    disk: Mapping[str, str] = {VECTOR: VECTOR}
    shared: tuple[str, ...] = ()

    def shapes(self, config: IA3Config, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        return {f"{point.id}.{VECTOR}": _shape(config, point) for point in points}

    def problems(self, config: IA3Config, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        return []

    def new(
        self, config: IA3Config, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """Ones."""
        return {f"{point.id}.{VECTOR}": np.ones(_shape(config, point), np.float32) for point in points}

    def feeds(
        self,
        config: IA3Config,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        return {
            f"{p.id}.{INTO if config.is_feedforward(p.id) else OUT}": tensors[f"{p.id}.{VECTOR}"].reshape(
                -1, *(1 for _ in p.kernel)
            )
            for p in points
        }

    def pullback(self, config: IA3Config, tensors: Tensors, gradients: Tensors, base: BaseValues) -> dict[str, Floats]:
        named = {f"{split_name(name)[0]}.{VECTOR}": gradient for name, gradient in gradients.items()}
        return {name: gradient.reshape(tensors[name].shape) for name, gradient in named.items()}

    def decisive(self, config: IA3Config, points: Sequence[str]) -> tuple[object, ...]:
        return tuple(config.is_feedforward(point) for point in points)

    def is_trained(self, name: str) -> bool:
        return True

    def to_disk(self, config: IA3Config, name: str, tensor: Floats) -> Floats:
        return tensor

    def from_disk(self, config: IA3Config, name: str, tensor: Floats) -> Floats:
        return tensor


def _shape(config: IA3Config, point: InsertionPoint) -> tuple[int, ...]:
    into = config.is_feedforward(point.id)
    channels = point.in_features if into else point.out_features
    if point.kernel:
        return (1, channels, *(1 for _ in point.kernel))
    return (1, channels) if into else (channels, 1)


IA3: Method = Ia3()
