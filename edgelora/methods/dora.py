"""DoRA: LoRA whose columns have lengths of their own (Liu et al. 2024, arXiv:2402.09353).

y = x·(W + A·B')∘g + bias, g = m/n, n the lengths of the columns of W + A·B', which count as constant for the gradient,
as in PEFT. The graph adds x·A·B'' and (x·W)∘h to y: it is fed B'' = B'∘g and h = g − 1. So dm = (dh + Σ_r B'∘dB'')/n
and dB' = g∘dB''. lora_magnitude_vector, m, is `[out]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgelora.config import LoraConfig
from edgelora.manifest import InsertionPoint
from edgelora.methods.base import NOTHING, BaseValues, Floats, Method, Shape, Tensors, linear_only, split_name
from edgelora.methods.lora import A, B, Lora

MAGNITUDE, GAIN = "lora_magnitude_vector", "dora_gain"


class Dora(Lora):
    """LoRA and the length of every column."""

    graphs = "dora"
    disk: Mapping[str, str] = {**Lora.disk, MAGNITUDE: MAGNITUDE}

    def shapes(self, config: LoraConfig, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        lengths: dict[str, Shape] = {f"{point.id}.{MAGNITUDE}": (point.out_features,) for point in points}
        return super().shapes(config, points) | lengths

    def problems(self, config: LoraConfig, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        return super().problems(config, tensors, points) + linear_only("DoRA", points)

    def new(
        self, config: LoraConfig, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """LoRA's tensors, and the lengths of the base's columns."""
        tensors = super().new(config, points, rng, base)
        return tensors | {f"{p}.{MAGNITUDE}": length for p, length in base.norms(tensors).items()}

    def feeds(
        self,
        config: LoraConfig,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        feeds = super().feeds(config, tensors, points, base, into)
        for point, length in base.norms(feeds).items():
            gain = tensors[f"{point}.{MAGNITUDE}"] / length
            feeds[f"{point}.{B}"] *= gain
            feeds[f"{point}.{GAIN}"] = (gain - 1).astype(np.float32)
        return feeds

    def pullback(self, config: LoraConfig, tensors: Tensors, gradients: Tensors, base: BaseValues) -> dict[str, Floats]:
        points = [point for point, suffix in map(split_name, gradients) if suffix == GAIN]
        low = {f"{p}.{A}": tensors[f"{p}.{A}"] for p in points}
        low |= {f"{p}.{B}": tensors[f"{p}.{B}"] * np.float32(config.scale(p)) for p in points}
        made: dict[str, Floats] = {}
        for point, length in base.norms(low).items():
            a, b, magnitude = (f"{point}.{suffix}" for suffix in (A, B, MAGNITUDE))
            made[a] = gradients[a]
            made[b] = gradients[b] * (tensors[magnitude] / length * np.float32(config.scale(point))).astype(np.float32)
            made[magnitude] = (gradients[f"{point}.{GAIN}"] + (low[b] * gradients[b]).sum(0)) / length
        return made


DORA: Method = Dora()
