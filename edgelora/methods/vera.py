"""VeRA: y = x·W + ((x·A)∘d)·B∘b, one random frozen pair A, B for all points (Kopiczko et al. 2023, arXiv:2310.11454).

The graph is LoRA's: it is fed A∘d and B∘b, so dd = Σ_in A∘dA' and db = Σ_r B∘dB'. A point takes the first `in` rows of
A and the first `out` columns of B. vera_A `[in, r]`, vera_B `[r, out]` in memory, transposed on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgelora.config import AdapterConfig, dropout_problems, is_number, rank_problems
from edgelora.manifest import InsertionPoint
from edgelora.methods.base import NOTHING, BaseValues, Floats, Method, Shape, Tensors, linear_only, split_name

INNER, OUTER, A, B = "vera_lambda_d", "vera_lambda_b", "vera_A", "vera_B"
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class VeraConfig(AdapterConfig):
    """Settings of a VeRA adapter (peft.VeraConfig).

    `r` is the rank, 1 to 65,536, `d_initial` the first value of every d. `vera_dropout` is the probability, in [0, 1),
    that an element of an adapter's input is dropped in training. `projection_prng_key` is the seed from which PEFT
    would draw A and B; here they are always written into the adapter.

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str] = "VERA"
    neutral: ClassVar[Mapping[str, Any]] = {"bias": "none"}
    without_effect: ClassVar[frozenset[str]] = frozenset({"init_weights", "save_projection"})
    unwritten: ClassVar[frozenset[str]] = frozenset({"exclude_modules"})

    r: int = 256
    d_initial: float = 0.1
    vera_dropout: float = 0.0
    projection_prng_key: int = 0

    def problems(self) -> list[str]:
        problems = [
            *rank_problems("r", self.r),
            *super().problems(),
            *dropout_problems("vera_dropout", self.vera_dropout),
        ]
        if not is_number(self.d_initial) or not abs(self.d_initial) <= LARGEST:
            problems.append(f"d_initial must be a number that float32 holds, not {self.d_initial!r:.40}")
        if not isinstance(self.projection_prng_key, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.append(f"projection_prng_key must be a whole number, not {self.projection_prng_key!r}")
        return problems

    @property
    def dropout(self) -> float:
        return self.vera_dropout

    def to_peft(self, task_type: str | None, points: Sequence[str] | None = None) -> dict[str, Any]:
        return {"bias": "none", "fan_in_fan_out": False, "save_projection": True, **super().to_peft(task_type, points)}


class Vera:
    """Vectors that scale a random low-rank product."""

    graphs = "lora"
    disk: Mapping[str, str] = {INNER: INNER, OUTER: OUTER}
    shared: tuple[str, ...] = (A, B)

    def shapes(self, config: VeraConfig, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        """The shared pair may be larger than these points need: it may have been made for more."""
        if not points:
            return {}
        vectors: dict[str, Shape] = {f"{p.id}.{INNER}": (config.r,) for p in points}
        vectors |= {f"{p.id}.{OUTER}": (p.out_features,) for p in points}
        return vectors | {A: ("inputs", config.r), B: (config.r, "outputs")}

    def problems(self, config: VeraConfig, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        problems = linear_only("VeRA", points)
        a, b = tensors.get(A), tensors.get(B)
        if a is not None and b is not None and a.ndim == b.ndim == 2 and points:
            rows, columns = max(p.in_features for p in points), max(p.out_features for p in points)
            if len(a) < rows or b.shape[1] < columns:
                problems.append(
                    f"{A} is for {len(a)} inputs and {B} for {b.shape[1]} outputs where the points have up to {rows} "
                    f"and {columns}"
                )
        return problems

    def new(
        self, config: VeraConfig, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """A and B Kaiming-uniform, ±√(6/fan-in); d constant, b zero."""
        if not points:
            return {}
        r, rows, columns = config.r, max(p.in_features for p in points), max(p.out_features for p in points)
        a, b = (6 / rows) ** 0.5, (6 / r) ** 0.5
        tensors = {
            A: rng.uniform(-a, a, (rows, r)).astype(np.float32),
            B: rng.uniform(-b, b, (r, columns)).astype(np.float32),
        }
        for point in points:
            tensors[f"{point.id}.{INNER}"] = np.full(r, config.d_initial, np.float32)
            tensors[f"{point.id}.{OUTER}"] = np.zeros(point.out_features, np.float32)
        return tensors

    def feeds(
        self,
        config: VeraConfig,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        feeds: dict[str, Floats] = {}
        for p in points:
            feeds[p.input_a] = tensors[A][: p.in_features] * tensors[f"{p.id}.{INNER}"]
            feeds[p.input_b] = tensors[B][:, : p.out_features] * tensors[f"{p.id}.{OUTER}"]
        return feeds

    def pullback(self, config: VeraConfig, tensors: Tensors, gradients: Tensors, base: BaseValues) -> dict[str, Floats]:
        made: dict[str, Floats] = {}
        for name, gradient in gradients.items():
            point, suffix = split_name(name)
            if suffix == "lora_A":
                made[f"{point}.{INNER}"] = (tensors[A][: len(gradient)] * gradient).sum(0)
            else:
                made[f"{point}.{OUTER}"] = (tensors[B][:, : gradient.shape[1]] * gradient).sum(0)
        return made

    def decisive(self, config: VeraConfig, points: Sequence[str]) -> tuple[object, ...]:
        return (config.r,)

    def is_trained(self, name: str) -> bool:
        return name not in self.shared

    def to_disk(self, config: VeraConfig, name: str, tensor: Floats) -> Floats:
        return tensor.T if name in self.shared else tensor

    def from_disk(self, config: VeraConfig, name: str, tensor: Floats) -> Floats:
        return tensor.T if name in self.shared else tensor


VERA: Method = Vera()
