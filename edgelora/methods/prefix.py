"""Prefix tuning: trained keys and values before those of the words, in every attention (arXiv:2101.00190).

`prompt_embeddings` is `[tokens, layers·2·width]`, of each layer the keys, then the values, their heads side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgelora.methods.base import Method
from edgelora.methods.virtual_tokens import VirtualTokens, VirtualTokensConfig

KEY, VALUE = "prefix_key", "prefix_value"


@dataclass(frozen=True)
class PrefixTuningConfig(VirtualTokensConfig):
    """Settings of prefix tuning (peft.PrefixTuningConfig): how many keys and values of each layer.

    What PEFT has trained through a projection (`prefix_projection`) it saves projected.

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str] = "PREFIX_TUNING"
    without_effect: ClassVar[frozenset[str]] = VirtualTokensConfig.without_effect | {
        "encoder_hidden_size",
        "init_weights",
        "prefix_projection",
    }

    def to_peft(self, task_type: str | None, points: Sequence[str] | None = None) -> dict[str, Any]:
        return {"prefix_projection": False, **super().to_peft(task_type, points)}


class PrefixTuning(VirtualTokens):
    """Keys and values of no words."""

    graphs = "prefix"
    parts = (KEY, VALUE)


PREFIX_TUNING: Method = PrefixTuning()
