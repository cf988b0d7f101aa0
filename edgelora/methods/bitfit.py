"""BitFit: a module's bias learns, y + c (Ben Zaken et al. 2021, arXiv:2106.10199).

It is written as PEFT's BEFT, which names the modules and keeps the change: beft_bias `[1, out]`. A module without a
bias of its own may have one too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgelora.config import AdapterConfig
from edgelora.manifest import InsertionPoint
from edgelora.methods.base import NOTHING, BaseValues, Floats, Method, Shape, Tensors, linear_only

BIAS = "beft_bias"


@dataclass(frozen=True)
class BeftConfig(AdapterConfig):
    """Settings of a BitFit adapter (peft.BeftConfig): which modules' biases learn.

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str] = "BEFT"
    without_effect: ClassVar[frozenset[str]] = frozenset({"init_weights"})
    unwritten: ClassVar[frozenset[str]] = frozenset({"exclude_modules", "layers_to_transform", "layers_pattern"})

    def to_peft(self, task_type: str | None, points: Sequence[str] | None = None) -> dict[str, Any]:
        return {"init_weights": True, **super().to_peft(task_type, points)}


class BitFit:
    """A change of the bias."""

    graphs = "bitfit"
    disk: Mapping[str, str] = {BIAS: BIAS}
    shared: tuple[str, ...] = ()

    def shapes(self, config: BeftConfig, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        return {f"{point.id}.{BIAS}": (1, point.out_features) for point in points}

    def problems(self, config: BeftConfig, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        """PEFT has it for linear modules alone."""
        return linear_only("BEFT", points)

    def new(
        self, config: BeftConfig, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """Zeros."""
        return {f"{point.id}.{BIAS}": np.zeros((1, point.out_features), np.float32) for point in points}

    def feeds(
        self,
        config: BeftConfig,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        return {f"{point.id}.{BIAS}": tensors[f"{point.id}.{BIAS}"].reshape(-1) for point in points}

    def pullback(self, config: BeftConfig, tensors: Tensors, gradients: Tensors, base: BaseValues) -> dict[str, Floats]:
        return {name: gradient.reshape(1, -1) for name, gradient in gradients.items()}

    def decisive(self, config: BeftConfig, points: Sequence[str]) -> tuple[object, ...]:
        return ()

    def is_trained(self, name: str) -> bool:
        return True

    def to_disk(self, config: BeftConfig, name: str, tensor: Floats) -> Floats:
        return tensor

    def from_disk(self, config: BeftConfig, name: str, tensor: Floats) -> Floats:
        return tensor


BITFIT: Method = BitFit()
