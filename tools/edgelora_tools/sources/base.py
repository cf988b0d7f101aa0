"""What every source gives the pipeline: a graph, a way to run the original, and what raw input needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

Runner = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

# PEFT's own defaults (peft.utils.constants, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING) for the
# model types whose modules carry these names.
DEFAULT_TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "xlm-roberta": ("query", "value"),
    "electra": ("query", "value"),
    "mpnet": ("q", "v"),
    "distilbert": ("q_lin", "v_lin"),
    "gpt2": ("c_attn",),
    "vit": ("query", "value"),
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
}


@dataclass(frozen=True)
class Source:
    """A model to convert. `run` evaluates the original (never our graph): names in, names out."""

    kind: str
    name: str
    model: ir.Model
    run: Runner
    files: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    default_targets: tuple[str, ...] | None = None

    def preprocessing(self, max_length: int | None) -> dict[str, Any]:
        """How raw input becomes graph inputs: by the tokenizer, where the source brings one."""
        if "tokenizer.json" not in self.files:
            return {"kind": "arrays"}
        return {
            "kind": "text",
            "tokenizer": "tokenizer.json",
            "max_length": max_length or int(self.facts.get("max_length", 128)),
            "pad_id": int(self.facts.get("pad_id", 0)),
        }
