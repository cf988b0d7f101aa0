"""Rotary embeddings that change with a text's length: settled as they are for texts of the model's original length.

Those of kind "dynamic" and "longrope" ask how long the longest text of a batch is, and turn all tokens otherwise once
it is beyond that: keys in a cache were turned before, and rows of one batch would change each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SETTLED = "default"


def settle_rotations(causal: Any) -> int:
    """Let the model, one of transformers, turn every token alone; how many tokens of a text it then takes, 0: any."""
    most: list[int] = []
    parameters: Any = getattr(causal.config, "rope_parameters", {})
    for module in causal.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str):
            limit = _limit(module, kind, parameters)
            if limit:
                module.rope_type = _SETTLED
                most.append(limit)
        elif isinstance(kind, Mapping):
            limits = {layers: _limit(module, one, parameters[layers]) for layers, one in kind.items()}
            module.rope_type = {layers: _SETTLED if limits[layers] else one for layers, one in kind.items()}
            most += filter(None, limits.values())
    return min(most, default=0)


def _limit(module: Any, kind: str, parameters: Mapping[str, Any]) -> int:
    """Up to how many tokens the rotations of this kind do not change; 0 where they never do."""
    if "dynamic" in kind:
        return int(module.original_max_seq_len)
    return int(parameters["original_max_position_embeddings"]) if kind == "longrope" else 0
