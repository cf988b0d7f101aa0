"""What the factories of the zoo share: seeded random weights, and sample inputs by kind of model.

Each function returns what a `module:factory` source returns: the module, its sample inputs by argument
name, and the dimensions of these that may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

hf: Any = transformers  # its configuration classes take more than their types tell

Axes = dict[str, dict[int, str]]
Made = tuple[torch.nn.Module, dict[str, torch.Tensor], Axes]

VOCABULARY = 99
ROWS, LENGTH = 2, 8

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build(make: Any, config: Any = None, attention: str | None = "eager", **options: str) -> Any:
    """The module with fixed random weights; norms and biases are random too, so that all of them count.

    `make` is a transformers model class, built from `config` with these `options`, or a function without arguments.
    """
    torch.manual_seed(0)
    if config is None:
        module = make()
    else:
        config.use_cache = False
        options |= {"attn_implementation": attention} if attention else {}
        module = make._from_config(config, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(torch.randn_like(buffer) * 0.1)
            elif name.endswith("running_var"):
                buffer.mul_(1 + 0.2 * torch.rand_like(buffer))
    return module.eval()


def ids(rows: int = ROWS, length: int = LENGTH, bound: int = VOCABULARY) -> torch.Tensor:
    """Token ids `[rows, length]`, none of the special first three."""
    return torch.randint(3, bound, (rows, length), generator=torch.Generator().manual_seed(1))


def text(module: torch.nn.Module, types: bool = False, mask: bool = True, length: int | None = None) -> Made:
    """Token ids, a mask, segment ids if there are `types`. With `length` that length alone is possible."""
    tokens = ids(length=length or LENGTH)
    inputs = {"input_ids": tokens}
    if mask:
        inputs["attention_mask"] = torch.ones_like(tokens)
    if types:
        inputs["token_type_ids"] = torch.zeros_like(tokens)
    axes = {0: "batch"} if length else {0: "batch", 1: "sequence"}
    return module, inputs, {name: dict(axes) for name in inputs}


def translation(module: torch.nn.Module) -> Made:
    """Ids and mask for the encoder, ids for the decoder."""
    tokens = ids()
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "decoder_input_ids": ids(length=6)}
    axes = {name: {0: "batch", 1: "sequence"} for name in inputs} | {"decoder_input_ids": {0: "batch", 1: "target"}}
    return module, inputs, axes


def floats(
    module: torch.nn.Module, *shape: int, name: str = "pixel_values", dynamic: Mapping[int, str] | None = None
) -> Made:
    """One input of floats `[batch, *shape]`; `dynamic` names more dimensions that may change."""
    x = torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(2))
    return module, {name: x}, {name: {0: "batch", **(dynamic or {})}}


def pixels(module: torch.nn.Module, size: int = 32, channels: int = 3) -> Made:
    """Square images of one size."""
    return floats(module, channels, size, size)
