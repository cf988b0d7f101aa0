"""Bottleneck adapters: y + s·(f(y·D + c)·U + b) after a module (Houlsby et al. 2019, arXiv:1902.00751).

Houlsby's places are the modules before a block's residual sums, Pfeiffer's the last of them alone (arXiv:2005.00247).
f is GELU in the graph, which is fed D' = β·D, c' = β·c, U' = (s/β)·U, b' = s·b. With β = 1 it is GELU here; ReLU is its
limit for large β, and with β = 2⁴⁰ within 2e-13: a power of two rounds nothing.

The names on disk are those of the library Adapters: adapter_down.0 `[r, out]` and adapter_up `[out, r]`, transposed in
memory, with biases `[r]` and `[out]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgelora.config import AdapterConfig, alpha_problems, rank_problems
from edgelora.manifest import InsertionPoint
from edgelora.methods.base import NOTHING, BaseValues, Floats, Method, Shape, Tensors, linear_only, split_name

DOWN, DOWN_BIAS, UP, UP_BIAS = "adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias"
_SHARPNESS = {"relu": 2.0**40, "gelu": 1.0}
_REDUCTION = 16


@dataclass(frozen=True)
class BottleneckConfig(AdapterConfig):
    """Settings of a bottleneck adapter; PEFT has no such method.

    `r` is the bottleneck's width, 1 to 65,536; None is a sixteenth of the module's outputs, rounded down, and at least
    1. `non_linearity` is "relu" or "gelu", `scaling` what the bottleneck's output is multiplied by. These two have the
    names and defaults of Adapters' Pfeiffer adapter (adapters.SeqBnConfig).

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str] = "BOTTLENECK"
    in_peft: ClassVar[bool] = False
    without_effect: ClassVar[frozenset[str]] = frozenset({"init_weights"})

    r: int | None = None
    non_linearity: str = "relu"
    scaling: float = 1.0

    def problems(self) -> list[str]:
        problems = [] if self.r is None else rank_problems("r", self.r)
        problems += [*super().problems(), *alpha_problems("scaling", self.scaling)]
        if self.non_linearity not in tuple(_SHARPNESS):
            problems.append(f"non_linearity must be {' or '.join(_SHARPNESS)}, not {self.non_linearity!r}")
        return problems

    def width(self, point: InsertionPoint) -> int:
        """The bottleneck's width at a point."""
        return max(point.out_features // _REDUCTION, 1) if self.r is None else self.r


class Bottleneck:
    """A small network of two layers after a module."""

    graphs = "bottleneck"
    disk: Mapping[str, str] = {
        DOWN: "adapter_down.0.weight",
        DOWN_BIAS: "adapter_down.0.bias",
        UP: "adapter_up.weight",
        UP_BIAS: "adapter_up.bias",
    }
    shared: tuple[str, ...] = ()

    def shapes(self, config: BottleneckConfig, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for point in points:
            r, out = config.width(point), point.out_features
            own: dict[str, Shape] = {DOWN: (out, r), DOWN_BIAS: (r,), UP: (r, out), UP_BIAS: (out,)}
            shapes |= {f"{point.id}.{suffix}": shape for suffix, shape in own.items()}
        return shapes

    def problems(self, config: BottleneckConfig, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        return linear_only("a bottleneck", points)

    def new(
        self, config: BottleneckConfig, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """The base as it is: D uniform in ±1/√out (Kaiming), all else zero, Adapters' `init_weights="mam_adapter"`."""
        tensors: dict[str, Floats] = {}
        for point in points:
            r, out = config.width(point), point.out_features
            down = rng.uniform(-(out**-0.5), out**-0.5, (out, r)).astype(np.float32)
            own = {DOWN: down, DOWN_BIAS: _zeros(r), UP: _zeros(r, out), UP_BIAS: _zeros(out)}
            tensors |= {f"{point.id}.{suffix}": tensor for suffix, tensor in own.items()}
        return tensors

    def feeds(
        self,
        config: BottleneckConfig,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        names = [f"{point.id}.{suffix}" for point in points for suffix in self.disk]
        return {name: np.multiply(tensors[name], _factor(config, name), out=into.get(name)) for name in names}

    def pullback(
        self, config: BottleneckConfig, tensors: Tensors, gradients: Tensors, base: BaseValues
    ) -> dict[str, Floats]:
        for name, gradient in gradients.items():
            gradient *= _factor(config, name)
        return dict(gradients)

    def decisive(self, config: BottleneckConfig, points: Sequence[str]) -> tuple[object, ...]:
        return config.r, config.non_linearity, config.scaling

    def is_trained(self, name: str) -> bool:
        return True

    def to_disk(self, config: BottleneckConfig, name: str, tensor: Floats) -> Floats:
        return tensor.T

    def from_disk(self, config: BottleneckConfig, name: str, tensor: Floats) -> Floats:
        return tensor.T


def _factor(config: BottleneckConfig, name: str) -> np.float32:
    """What a tensor is multiplied by on its way into the graph."""
    beta, scale = _SHARPNESS[config.non_linearity], float(config.scaling)
    return np.float32({DOWN: beta, DOWN_BIAS: beta, UP: scale / beta, UP_BIAS: scale}[split_name(name)[1]])


def _zeros(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


BOTTLENECK: Method = Bottleneck()
