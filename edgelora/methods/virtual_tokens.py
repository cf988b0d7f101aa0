"""What prompt and prefix tuning share: the settings of virtual tokens, and one tensor that holds all that is trained.

`prompt_embeddings` `[tokens, width]` has side by side what the graph takes at each place, in the places' order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from edgelora.config import AdapterConfig, rank_problems
from edgelora.manifest import InsertionPoint
from edgelora.methods.base import NOTHING, BaseValues, Floats, Shape, Tensors

EMBEDDINGS = "prompt_embeddings"
_OF_MODULES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


@dataclass(frozen=True)
class VirtualTokensConfig(AdapterConfig):
    """Settings of an adapter of virtual tokens: their number, 1 to 65,536. It belongs to no modules.

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    # a model of two halves, an encoder and a decoder, has virtual tokens for both
    neutral: ClassVar[Mapping[str, Any]] = {"num_transformer_submodules": 1}
    without_effect: ClassVar[frozenset[str]] = frozenset({"num_attention_heads", "num_layers", "token_dim"})
    unwritten: ClassVar[frozenset[str]] = frozenset(_OF_MODULES)

    num_virtual_tokens: int = 20

    def problems(self) -> list[str]:
        given = [name for name in _OF_MODULES if getattr(self, name) is not None]
        strange = [f"virtual tokens belong to no modules: leave {', '.join(given)} out"] if given else []
        return [*rank_problems("num_virtual_tokens", self.num_virtual_tokens), *strange, *super().problems()]

    @property
    def virtual_tokens(self) -> int:
        return self.num_virtual_tokens

    def renamed(self, ids: Mapping[str, str]) -> Self:
        return self

    def to_peft(self, task_type: str | None, points: Sequence[str] | None = None) -> dict[str, Any]:
        return {"num_transformer_submodules": 1, **super().to_peft(task_type, None)}


class VirtualTokens:
    """Vectors of `parts` at each place, `[tokens, out]`."""

    parts: tuple[str, ...]
    disk: Mapping[str, str] = {}
    shared: tuple[str, ...] = (EMBEDDINGS,)

    def _inputs(self, points: Sequence[InsertionPoint]) -> dict[str, int]:
        """The graph inputs, by name how wide."""
        return {f"{point.id}.{part}": point.out_features for point in points for part in self.parts}

    def shapes(self, config: VirtualTokensConfig, points: Sequence[InsertionPoint]) -> dict[str, Shape]:
        return {EMBEDDINGS: (config.num_virtual_tokens, sum(self._inputs(points).values()))}

    def problems(self, config: VirtualTokensConfig, tensors: Tensors, points: Sequence[InsertionPoint]) -> list[str]:
        return []

    def new(
        self,
        config: VirtualTokensConfig,
        points: Sequence[InsertionPoint],
        rng: np.random.Generator,
        base: BaseValues,
    ) -> dict[str, Floats]:
        """Standard normal, as torch's Embedding."""
        width = sum(self._inputs(points).values())
        return {EMBEDDINGS: rng.standard_normal((config.num_virtual_tokens, width)).astype(np.float32)}

    def feeds(
        self,
        config: VirtualTokensConfig,
        tensors: Tensors,
        points: Sequence[InsertionPoint],
        base: BaseValues,
        into: Tensors = NOTHING,
    ) -> dict[str, Floats]:
        inputs = self._inputs(points)
        ends = np.cumsum(list(inputs.values()))[:-1]
        parts = np.split(tensors[EMBEDDINGS], ends, axis=1)
        return {name: np.ascontiguousarray(part) for name, part in zip(inputs, parts, strict=True)}

    def pullback(
        self, config: VirtualTokensConfig, tensors: Tensors, gradients: Tensors, base: BaseValues
    ) -> dict[str, Floats]:
        return {EMBEDDINGS: np.concatenate(list(gradients.values()), axis=1)}

    def decisive(self, config: VirtualTokensConfig, points: Sequence[str]) -> tuple[object, ...]:
        return (config.num_virtual_tokens,)

    def is_trained(self, name: str) -> bool:
        return True

    def to_disk(self, config: VirtualTokensConfig, name: str, tensor: Floats) -> Floats:
        return tensor

    def from_disk(self, config: VirtualTokensConfig, name: str, tensor: Floats) -> Floats:
        return tensor
