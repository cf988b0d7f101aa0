"""Prompt tuning: trained vectors before those of the words (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgelora.methods.base import Method
from edgelora.methods.virtual_tokens import VirtualTokens, VirtualTokensConfig

PROMPT = "prompt"


@dataclass(frozen=True)
class PromptTuningConfig(VirtualTokensConfig):
    """Settings of prompt tuning (peft.PromptTuningConfig): how many vectors; they begin at random (RANDOM).

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str] = "PROMPT_TUNING"
    without_effect: ClassVar[frozenset[str]] = VirtualTokensConfig.without_effect | {
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }

    def to_peft(self, task_type: str | None, points: Sequence[str] | None = None) -> dict[str, Any]:
        return {"prompt_tuning_init": "RANDOM", **super().to_peft(task_type, points)}


class PromptTuning(VirtualTokens):
    """Words of no vocabulary."""

    graphs = "prompt"
    parts = (PROMPT,)


PROMPT_TUNING: Method = PromptTuning()
