"""Small random-weight models of the families that must convert, and PEFT's gradients of them."""

from __future__ import annotations

import copy
import functools
from typing import Any, cast

import numpy as np
import peft
import torch
import transformers

from edgelora_tools.sources.base import Source
from edgelora_tools.sources.torch_export import module_source

SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32}
TEXT: dict[str, Any] = {"vocab_size": 99, "max_position_embeddings": 64}

CONFIGS: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SMALL, **TEXT),
    "minilm": lambda: transformers.BertConfig(**SMALL | {"num_attention_heads": 8}, **TEXT, hidden_act="gelu_new"),
    "roberta": lambda: transformers.RobertaConfig(**SMALL, **TEXT),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
    "vit": lambda: transformers.ViTConfig(**SMALL, image_size=16, patch_size=4),
    "llama": lambda: transformers.LlamaConfig(**SMALL, **TEXT, num_key_value_heads=2),
}

POOLED, CACHING = ("bert", "minilm", "roberta", "vit"), ("gpt2", "llama")


@functools.cache
def build(family: str, attention: str = "eager") -> torch.nn.Module:
    """A model of the family with fixed random weights; norms and biases are random too."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS[family](), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@functools.cache
def source(family: str, exporter: str = "dynamo", attention: str = "eager") -> Source:
    """The model as an exporter writes it, once for all tests of a process: conversion does not change a source."""
    inputs = {name: torch.from_numpy(x) for name, x in sample(family, rows=2, length=8).items()}
    names = ["last_hidden_state", *(["pooler_output"] if family in POOLED else [])]
    extra = {"use_cache": False} if family in CACHING else {}
    return module_source(build(family, attention), inputs, family, exporter, extra=extra, outputs=names)


def sample(family: str, rows: int = 3, length: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs with padding on the right in every row but the first."""
    rng = np.random.default_rng(seed)
    if family == "vit":
        return {"pixel_values": rng.standard_normal((rows, 3, 16, 16)).astype(np.float32)}
    mask = np.ones((rows, length), np.int64)
    for row in range(1, rows):
        mask[row, length - row :] = 0
    inputs = {"input_ids": rng.integers(3, 99, (rows, length)) * mask, "attention_mask": mask}
    if family in ("bert", "minilm", "roberta"):
        inputs["token_type_ids"] = np.zeros_like(mask)
    if family == "roberta":
        inputs["input_ids"] = np.where(mask == 1, inputs["input_ids"], 1)
    return inputs


def peft_model(model: torch.nn.Module, adapter: dict[str, np.ndarray], points: list[str], alpha: float) -> Any:
    """The model under PEFT with these A `[in, r]` and B `[r, out]` (graph orientation) at `points`."""
    rank = adapter[f"{points[0]}.lora_A"].shape[1]
    config = peft.LoraConfig(r=rank, lora_alpha=int(alpha), target_modules=points, lora_dropout=0.0)
    wrapped: Any = peft.get_peft_model(cast("Any", copy.deepcopy(model)), config).eval()
    modules: dict[str, Any] = dict(wrapped.base_model.model.named_modules())
    with torch.no_grad():
        for point in points:
            layer = modules[point]
            layer.lora_A["default"].weight.copy_(torch.from_numpy(adapter[f"{point}.lora_A"].T.copy()))
            layer.lora_B["default"].weight.copy_(torch.from_numpy(adapter[f"{point}.lora_B"].T.copy()))
    return wrapped


def peft_gradients(wrapped: Any, points: list[str]) -> dict[str, np.ndarray]:
    """The accumulated gradients, in graph orientation."""
    modules = dict(wrapped.base_model.model.named_modules())
    return {
        f"{point}.{part}": getattr(modules[point], part)["default"].weight.grad.numpy().T
        for point in points
        for part in ("lora_A", "lora_B")
    }
