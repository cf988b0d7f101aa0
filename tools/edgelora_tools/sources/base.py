"""What every source gives the pipeline: a graph, a way to run the original, and what raw input needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from edgelora_tools.sources.torch_export import Original

Runner = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Source:
    """A model to convert. `run` evaluates the original (never our graph): names in, names out.

    `original` is the torch module behind it, where there is one: it can be differentiated.
    """

    kind: str
    name: str
    model: ir.Model
    run: Runner
    files: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    original: Original | None = None

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
