"""What every source gives the pipeline: a graph, a way to run the original, and what raw input needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgelora.errors import ConversionError
from edgelora.manifest import LanguageFacts

if TYPE_CHECKING:
    from edgelora_tools.sources.torch_export import Original

Runner = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Decoder(LanguageFacts):
    """What of a source continues text: its graph with a cache.

    `cached` takes `past_key_values.I.key` and `.value` `[batch, kv_heads, past, head_size]` of each layer beside the
    source's inputs, `attention_mask` over past and present, and returns them longer as `present.I.key` and `.value`.
    `window` is how many slots some layers see at most, 0 where all see all.
    """

    cached: ir.Model
    window: int = 0


@dataclass(frozen=True)
class Source:
    """A model to convert. `run` evaluates the original (never our graph): names in, names out.

    `otherwise` evaluates it too, in another order of sums, where it has two sets of kernels or can run its rows alone,
    and returns nothing where the other set cannot.
    `original` is the torch module behind it, where there is one: it can be differentiated. `reread` makes what
    `reading` returns, where the source can tell of tensors inside it. `decoder` is there if the source continues text.
    """

    kind: str
    name: str
    model: ir.Model
    run: Runner
    files: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    original: Original | None = None
    reread: Callable[[str | None, bool], Source] | None = None
    decoder: Decoder | None = None
    otherwise: Runner | None = None

    def reading(self, output: str | None, channels_second: bool) -> Source:
        """The source with the tensor `output` inside it among its outputs; `run` returns that as well.

        With `channels_second` outputs of four axes are `[N, C, h, w]`, as heads read them; else as in the source.

        Raises:
            ConversionError: the source has no such tensor, or none but its outputs.
        """
        if self.reread is not None:
            return self.reread(output, channels_second)
        own = [str(v.name) for v in self.model.graph.outputs]
        if output is not None and output not in own:
            raise ConversionError(
                f"the source has no output {output!r}; it has {', '.join(own)}. A torch module returns what its "
                "factory makes it return: let module:factory return that tensor"
            )
        return self

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
