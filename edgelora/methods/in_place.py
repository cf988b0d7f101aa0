"""What methods share whose tensors take the place of the base's own values: the graph is fed the tensors themselves.

`{point}.base_weight` is `[in, out]`, of a normalization the scale `[features]`; `{point}.base_bias` is `[out]`, where
the base has a bias. They begin as the base's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgelora.manifest import NORMALIZATIONS, InsertionPoint
from edgelora.methods.base import BASE_BIAS, BASE_WEIGHT, NOTHING, BaseValues, Floats, Shape, Tensors


class InPlace:
    """Weights and biases of modules, whole."""

    shared: tuple[str, ...] = ()

    def shapes(self, config: Any, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for point in points:
            is_vector = point.op in NORMALIZATIONS
            weight = (point.out_features,) if is_vector else (point.in_features, point.out_features)
            shapes[f"{point.id}.{BASE_WEIGHT}"] = weight
            if point.bias:
                shapes[f"{point.id}.{BASE_BIAS}"] = (point.out_features,)
        return shapes

    def problems(self, config: Any, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        return []

    def new(
        self, config: Any, points: Sequence[InsertionPoint], rng: np.random.Generator, base: BaseValues
    ) -> dict[str, Floats]:
        """The base's own."""
        return dict(base.values(list(self.shapes(config, points))))

    def feeds(
        self,
        config: Any,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        return {name: tensors[name] for name in self.shapes(config, points)}

    def pullback(self, config: Any, tensors: Tensors, gradients: Tensors, base: BaseValues) -> dict[str, Floats]:
        return dict(gradients)

    def decisive(self, config: Any, points: Sequence[str]) -> tuple[object, ...]:
        return ()

    def is_trained(self, name: str) -> bool:
        return True

    def to_disk(self, config: Any, name: str, tensor: Floats) -> Floats:
        return tensor.T

    def from_disk(self, config: Any, name: str, tensor: Floats) -> Floats:
        return tensor.T if tensor.ndim == 2 else tensor
