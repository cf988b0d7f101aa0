"""LoRA: y = x·W + s·(x·A)·B (Hu et al. 2021, arXiv:2106.09685). The graph is fed B' = s·B, so dB = s·dB'.

A `[in, r]`, B `[r, out]` in memory; on disk lora_A `[r, in]`, lora_B `[out, r]`. A convolution's are the same in both,
A `[r, in, *kernel]`, B `[out, r/groups, 1, ...]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from edgelora.config import LoraConfig
from edgelora.manifest import InsertionPoint
from edgelora.methods.base import NOTHING, BaseValues, Floats, Method, Shape, Tensors, split_name

A, B = "lora_A", "lora_B"


class Lora:
    """Low-rank adaptation of a product."""

    graphs = "lora"
    disk: Mapping[str, str] = {A: "lora_A.weight", B: "lora_B.weight"}
    shared: tuple[str, ...] = ()

    def shapes(self, config: LoraConfig, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        """The rank of a linear point is left open: `problems` holds A, B and the settings against each other."""
        shapes: dict[str, Shape] = {}
        for point in points:
            rank = config.rank(point.id)
            a, b = (
                (point.shape_a(rank), point.shape_b(rank))
                if point.kernel
                else ((point.in_features, "r"), ("r", point.out_features))
            )
            shapes |= {point.input_a: a, point.input_b: b}
        return shapes

    def problems(self, config: LoraConfig, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        """Ranks that are not the settings'; convolutions in groups that the rank does not divide (as in PEFT)."""
        problems = [
            f"{point.id} is a convolution in {point.groups} groups and its rank {config.rank(point.id)} is no multiple "
            "of that: give it another rank with rank_pattern, or leave it out of target_modules"
            for point in points
            if config.rank(point.id) % point.groups
        ]
        for point in points:
            a, b, rank = tensors.get(point.input_a), tensors.get(point.input_b), config.rank(point.id)
            if a is not None and b is not None and a.ndim == b.ndim == 2 and not a.shape[1] == b.shape[0] == rank:
                problems.append(
                    f"{point.id}: lora_A has rank {a.shape[1]}, lora_B {b.shape[0]} where its settings say {rank}"
                )
        return problems

    def new(
        self, config: LoraConfig, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """A uniform in ±1/√(inputs of an output) (Kaiming), B zero."""
        tensors: dict[str, Floats] = {}
        for point in points:
            rank = config.rank(point.id)
            bound = 1.0 / (point.in_features * math.prod(point.kernel)) ** 0.5
            tensors[point.input_a] = rng.uniform(-bound, bound, point.shape_a(rank)).astype(np.float32)
            tensors[point.input_b] = np.zeros(point.shape_b(rank), np.float32)
        return tensors

    def feeds(
        self,
        config: LoraConfig,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        feeds: dict[str, Floats] = {}
        for point in points:
            feeds[point.input_a] = tensors[point.input_a]
            scale = np.float32(config.scale(point.id))
            feeds[point.input_b] = np.multiply(tensors[point.input_b], scale, out=into.get(point.input_b))
        return feeds

    def pullback(self, config: LoraConfig, tensors: Tensors, gradients: Tensors, base: BaseValues) -> dict[str, Floats]:
        for name, gradient in gradients.items():
            point, suffix = split_name(name)
            if suffix == B:
                gradient *= np.float32(config.scale(point))
        return dict(gradients)

    def decisive(self, config: LoraConfig, points: Sequence[str]) -> tuple[object, ...]:
        return (
            config.r,
            config.lora_alpha,
            config.rank_pattern,
            config.alpha_pattern,
            config.use_rslora,
            config.use_dora,
            config.init_lora_weights,
            config.bias,
        )

    def is_trained(self, name: str) -> bool:
        return True

    def to_disk(self, config: LoraConfig, name: str, tensor: Floats) -> Floats:
        return tensor.T if tensor.ndim == 2 else tensor

    def from_disk(self, config: LoraConfig, name: str, tensor: Floats) -> Floats:
        return tensor.T if tensor.ndim == 2 else tensor


LORA: Method = Lora()
