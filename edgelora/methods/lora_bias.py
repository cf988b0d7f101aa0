"""LoRA whose modules have biases of their own: `bias="lora_only"`, or with "all" every module of the base that has one.

A bias takes the place of the base's. It is called base_bias where LoRA stands too and other_bias elsewhere, `[out]`,
for PEFT writes the two under different names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgelora.config import LoraConfig
from edgelora.manifest import BIAS_OP, InsertionPoint
from edgelora.methods.base import (
    BASE_BIAS,
    NOTHING,
    OTHER_BIAS,
    BaseValues,
    Floats,
    Method,
    Shape,
    Tensors,
    split_name,
)
from edgelora.methods.lora import Lora


class LoraBias(Lora):
    """LoRA and biases."""

    graphs = "lora-bias"
    disk: Mapping[str, str] = {**Lora.disk, BASE_BIAS: "base_layer.bias", OTHER_BIAS: "bias"}

    def shapes(self, config: LoraConfig, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        biases: dict[str, Shape] = {_name(p): (p.out_features,) for p in points if p.bias}
        return super().shapes(config, _products(points)) | biases

    def problems(self, config: LoraConfig, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        return super().problems(config, tensors, _products(points))

    def new(
        self, config: LoraConfig, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """LoRA's tensors, and the base's biases."""
        names = {f"{p.id}.{BASE_BIAS}": _name(p) for p in points if p.bias}
        own = {names[name]: value for name, value in base.values(list(names)).items()}
        return super().new(config, _products(points), rng, base) | own

    def feeds(
        self,
        config: LoraConfig,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        biases = {f"{p.id}.{BASE_BIAS}": tensors[_name(p)] for p in points if p.bias}
        return super().feeds(config, tensors, _products(points), base, into) | biases

    def pullback(self, config: LoraConfig, tensors: Tensors, gradients: Tensors, base: BaseValues) -> dict[str, Floats]:
        made = super().pullback(config, tensors, gradients, base)
        return {n if n in tensors else f"{split_name(n)[0]}.{OTHER_BIAS}": gradient for n, gradient in made.items()}


def _products(points: Sequence[InsertionPoint]) -> list[InsertionPoint]:
    """Those at which LoRA stands."""
    return [point for point in points if point.op != BIAS_OP]


def _name(point: InsertionPoint) -> str:
    return f"{point.id}.{OTHER_BIAS if point.op == BIAS_OP else BASE_BIAS}"


LORA_BIAS: Method = LoraBias()
