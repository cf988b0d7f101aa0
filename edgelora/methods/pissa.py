"""PiSSA: LoRA that begins as the largest singular values of W (Meng et al. 2024, arXiv:2404.02948).

With W = U·S·V, A0 = U_r·√(S_r/s) and B0 = √(S_r/s)·V_r the model is W + s·(A·B − A0·B0): A and B begin as A0 and B0,
and alone learn. The base stays as it is, so this is LoRA of rank 2r, fed [A, A0] and s·[B; −B0], and is saved as such,
as PEFT does with `path_initial_model_for_weight_conversion`. Trained further, what was saved learns whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelora.config import LoraConfig
from edgelora.manifest import InsertionPoint
from edgelora.methods.base import (
    BASE_WEIGHT,
    NOTHING,
    BaseValues,
    Floats,
    Method,
    Shape,
    Tensors,
    linear_only,
    split_name,
)
from edgelora.methods.lora import A, B, Lora

FIRST_A, FIRST_B = "pissa_A", "pissa_B"


class Pissa(Lora):
    """LoRA while it learns from the largest singular values; its files are LoRA's."""

    def shapes(self, config: LoraConfig, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        shapes = super().shapes(config, points)
        for point in points:
            shapes[f"{point.id}.{FIRST_A}"] = (point.in_features, config.rank(point.id))
            shapes[f"{point.id}.{FIRST_B}"] = (config.rank(point.id), point.out_features)
        return shapes

    def problems(self, config: LoraConfig, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        largest = {point.id: min(point.in_features, point.out_features) for point in points}
        return [
            *super().problems(config, tensors, points),
            *linear_only("PiSSA", points),
            *(
                f"{point} has rank {config.rank(point)}, and PiSSA there at most {most}"
                for point, most in largest.items()
                if config.rank(point) > most
            ),
        ]

    def new(
        self, config: LoraConfig, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """A0 and B0, twice."""
        first = beginnings(config, points, rng, base)
        learning = {name.replace(FIRST_A, A).replace(FIRST_B, B): tensor.copy() for name, tensor in first.items()}
        return learning | first

    def feeds(
        self,
        config: LoraConfig,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        feeds: dict[str, Floats] = {}
        for p in points:
            feeds[p.input_a], feeds[p.input_b] = _joined(tensors, p.id, into)
            feeds[p.input_b] *= np.float32(config.scale(p.id))
        return feeds

    def pullback(self, config: LoraConfig, tensors: Tensors, gradients: Tensors, base: BaseValues) -> dict[str, Floats]:
        made: dict[str, Floats] = {}
        for name, gradient in super().pullback(config, tensors, gradients, base).items():
            rank = config.rank(split_name(name)[0])
            made[name] = gradient[:, :rank] if split_name(name)[1] == A else gradient[:rank]
        return made

    def is_trained(self, name: str) -> bool:
        return split_name(name)[1] not in (FIRST_A, FIRST_B)


def beginnings(
    config: LoraConfig, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
) -> dict[str, Floats]:
    """A0 and B0 at every point, from the base's weights; `rng` draws if the settings have a number of iterations.

    Raises:
        ConfigError: a weight is not known, or of codes.
    """
    found: dict[str, Floats] = {}
    for point in points:
        name = f"{point.id}.{BASE_WEIGHT}"
        u, s, v = _largest(base.values([name])[name], config.rank(point.id), config.pissa_iterations, rng)
        root = np.sqrt(s / np.float32(config.scale(point.id)))
        found[f"{point.id}.{FIRST_A}"] = np.ascontiguousarray(u * root, np.float32)
        found[f"{point.id}.{FIRST_B}"] = np.ascontiguousarray(root[:, None] * v, np.float32)
    return found


def as_lora(tensors: Tensors) -> dict[str, Floats]:
    """The same adapter in LoRA's tensors, of rank 2r; its settings are `LoraConfig.saved`'s."""
    made = {name: tensor for name, tensor in tensors.items() if split_name(name)[1] not in (A, B, FIRST_A, FIRST_B)}
    for point, suffix in map(split_name, tensors):
        if suffix == A:
            made[f"{point}.{A}"], made[f"{point}.{B}"] = _joined(tensors, point, NOTHING)
    return made


def _joined(tensors: Tensors, point: str, into: Tensors) -> tuple[Floats, Floats]:
    """[A, A0] and [B; −B0] at a point, in the arrays of `into` if it has them."""
    a, b, a0, b0 = (tensors[f"{point}.{suffix}"] for suffix in (A, B, FIRST_A, FIRST_B))
    return (
        np.concatenate((a, a0), axis=1, out=into.get(f"{point}.{A}")),
        np.concatenate((b, -b0), axis=0, out=into.get(f"{point}.{B}")),
    )


def _largest(w: Floats, rank: int, iterations: int | None, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """The largest singular values of w with their vectors: `[in, r]`, `[r]`, `[r, out]`.

    With `iterations` in the range that these many multiplications by w·wᵀ leave of random vectors (Halko et al. 2011,
    arXiv:0909.4061, algorithm 4.4, as torch.svd_lowrank), which is near and fast.
    """
    if iterations is None:
        u, s, v = np.linalg.svd(w, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]
    q = np.linalg.qr(w @ rng.standard_normal((w.shape[1], rank)).astype(np.float32))[0]
    for _ in range(iterations):
        q = np.linalg.qr(w @ np.linalg.qr(w.T @ q)[0])[0]
    u, s, v = np.linalg.svd(q.T @ w, full_matrices=False)
    return q @ u, s, v


PISSA: Method = Pissa()
