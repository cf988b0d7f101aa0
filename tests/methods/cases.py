"""One case of every adapter method: its settings and its twin, on the tiny BERT of tests/device/tiny.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import peft

from edgelora import (
    BeftConfig,
    BottleneckConfig,
    FullConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
)
from edgelora.config import AdapterConfig
from tests.methods.bottleneck import BottleneckInTorch
from tests.methods.twins import BeforeTheText, InPeft, Twin, Whole

ATTENTION = ("query", "value")
WHOLE = ("query", "value", "output.dense")


@dataclass(frozen=True)
class Case:
    """Settings of a method, and what has the same settings in torch."""

    name: str
    ours: AdapterConfig
    twin: Twin
    begins_as_the_base: bool = True


def _lora(**more: Any) -> tuple[LoraConfig, Twin]:
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, **more}
    return LoraConfig(target_modules=WHOLE, **settings), InPeft(peft.LoraConfig(target_modules=list(WHOLE), **settings))


CASES = {
    case.name: case
    for case in (
        Case("lora", *_lora()),
        Case(
            "lora-patterns",
            *_lora(rank_pattern={r"0\..*query": 2, "value": 3}, alpha_pattern={"value": 20}, use_rslora=False),
        ),
        Case("rslora", *_lora(use_rslora=True, rank_pattern={"value": 2})),
        Case("dora", *_lora(use_dora=True, rank_pattern={"value": 2}, alpha_pattern={"value": 20})),
        Case(
            "vera",
            VeraConfig(r=12, target_modules=WHOLE, d_initial=0.2),
            InPeft(peft.VeraConfig(r=12, target_modules=list(WHOLE), d_initial=0.2)),
        ),
        Case(
            "ia3",
            IA3Config(target_modules=WHOLE, feedforward_modules=("output.dense",)),
            InPeft(peft.IA3Config(target_modules=list(WHOLE), feedforward_modules=["output.dense"])),
        ),
        Case(
            "bottleneck",
            BottleneckConfig(r=5, target_modules=WHOLE, scaling=1.5),
            BottleneckInTorch(WHOLE, peft_type="BOTTLENECK", r=5, non_linearity="relu", scaling=1.5),
        ),
        Case(
            "bottleneck-gelu",
            BottleneckConfig(target_modules=("output.dense",), non_linearity="gelu"),
            BottleneckInTorch(("output.dense",), peft_type="BOTTLENECK", non_linearity="gelu", scaling=1.0),
        ),
        Case("bitfit", BeftConfig(target_modules=ATTENTION), InPeft(peft.BeftConfig(target_modules=list(ATTENTION)))),
        Case(
            "layer-norm",
            LNTuningConfig(target_modules=("LayerNorm",)),
            InPeft(peft.LNTuningConfig(target_modules=["LayerNorm"])),
        ),
        Case("lora-only-bias", *_lora(bias="lora_only", rank_pattern={"value": 2})),
        Case("lora-all-biases", *_lora(bias="all")),
        Case("full", FullConfig(target_modules=ATTENTION), Whole(ATTENTION)),
        Case(
            "prompt",
            PromptTuningConfig(num_virtual_tokens=3),
            BeforeTheText(peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)),
            begins_as_the_base=False,
        ),
        Case(
            "prefix",
            PrefixTuningConfig(num_virtual_tokens=3),
            BeforeTheText(peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)),
            begins_as_the_base=False,
        ),
    )
}
