"""A causal language model as a torch module of tensors alone: ids, segments, positions and the cache in; logits and the
cache out. The mask is made here, once, from the numbers of segments."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch

from edgelora.errors import ConversionError
from edgelora_tools.passes.tie_head import tie_head
from edgelora_tools.passes.without_cache import sizes_from_tokens
from edgelora_tools.sources.torch_export import OPSET, forget_tensors_of_torch, root_of

PAST, PRESENT = "past_key_values", "present"
TOKENS = ("input_ids", "attention_mask", "position_ids")
_FULL, SLIDING = "full_attention", "sliding_attention"
_INNER = "causal"
_LEAST = torch.finfo(torch.float32).min
_ROWS, _NEW, _BEFORE = 2, 3, 5  # of the sample that is exported


class CachedModule(torch.nn.Module):
    """`causal`, called with a cache of tensors: past keys and values of every layer `[batch, heads, past, size]`.

    `attention_mask` `[batch, past + sequence]` numbers segments: the query at slot past + i sees the keys of its own
    segment at slots up to its own, of windowed layers the last `window` slots.
    """

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.causal = causal
        self.kinds = attention_kinds(causal.config)
        self.window = int(getattr(causal.config, "sliding_window", None) or 0)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        cache = Cache(past)
        made = self.causal(
            input_ids=input_ids,
            attention_mask=self._masks(attention_mask, input_ids.shape[1]),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (made.logits, *cache.tensors)

    def _masks(self, segments: torch.Tensor, sequence: int) -> Any:
        """What is added to scores, `[batch, 1, sequence, total]`; by kind of layer where there are several."""
        total = segments.shape[1]
        slots = torch.arange(total)
        own, own_slots = segments[:, total - sequence :, None], slots[total - sequence :, None]
        hidden = (segments[:, None, :] != own) | (slots > own_slots)
        masks = {}
        for kind in self.kinds:
            unseen = hidden | (slots <= own_slots - self.window) if kind == SLIDING else hidden
            masks[kind] = (unseen.to(torch.float32) * _LEAST)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))


class Cache:
    """Keys and values of all layers, in order, as the modules of transformers update them: by appending."""

    def __init__(self, past: Sequence[torch.Tensor]) -> None:
        self._kept = dict(enumerate(past))
        self._past = past[0].shape[2] if past else 0

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Keys and values, layer by layer."""
        return [self._kept[place] for place in sorted(self._kept)]

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for place, new in ((2 * layer_idx, key), (2 * layer_idx + 1, value)):
            self._kept[place] = torch.cat([self._kept[place], new], dim=2) if place in self._kept else new
        return self._kept[2 * layer_idx], self._kept[2 * layer_idx + 1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._past


def attention_kinds(config: Any) -> tuple[str, ...]:
    """Which kinds of attention the layers have: to all that came before, or to a window of it.

    Raises:
        ConversionError: layers of another kind, which no cache of keys and values serves.
    """
    window = getattr(config, "sliding_window", None)
    listed = getattr(config, "layer_types", None) or [_FULL if window is None else SLIDING]
    kinds = tuple(dict.fromkeys(str(kind) for kind in listed))
    strange = [kind for kind in kinds if kind not in (_FULL, SLIDING)]
    if strange:
        raise ConversionError(f"layers of {', '.join(strange)}: text-generation takes attention, whole or in windows")
    return kinds


def cache_names(layers: int, of: str = PAST) -> list[str]:
    """The names of the cache's tensors: keys and values, layer by layer."""
    return [f"{of}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def tokens_of(rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Graph inputs of rows of ids with their segments; positions count from 0 in each segment."""
    mask = torch.tensor(segments)
    same = (mask[:, :, None] == mask[:, None, :]).tril()
    return {"input_ids": torch.tensor(rows), "attention_mask": mask, "position_ids": same.sum(-1) - 1}


def export_cached(module: CachedModule, past: Sequence[torch.Tensor], vocabulary: int) -> ir.Model:
    """The graph with a cache: `[batch, sequence]` tokens after `past` slots, all three of any size.

    `past` are empty tensors as each layer keeps them.
    """
    layers = len(past) // 2
    ids = torch.arange(_ROWS * _NEW).reshape(_ROWS, _NEW) % vocabulary
    positions = torch.arange(_BEFORE, _BEFORE + _NEW).expand(_ROWS, _NEW).contiguous()
    mask = torch.ones(_ROWS, _BEFORE + _NEW, dtype=torch.int64)
    filled = [torch.zeros(_ROWS, x.shape[1], _BEFORE, x.shape[3]) for x in past]
    open_size = torch.export.Dim.DYNAMIC
    tokens = {0: open_size, 1: open_size}
    shapes = (tokens, tokens, tokens, [{0: open_size, 2: open_size} for _ in filled])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module,
                (ids, mask, positions, filled),
                dynamic_shapes=shapes,
                opset_version=OPSET["dynamo"],
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            raise ConversionError(f"the exporter cannot follow the model with a cache ({root_of(error)})") from error
    assert program is not None
    model = program.model
    forget_tensors_of_torch(model)
    common.InlinePass()(model)
    _name(model, layers)
    return sizes_from_tokens(tie_head(model))


def _name(model: ir.Model, layers: int) -> None:
    """Inputs, outputs and their sizes by the names that they have elsewhere; ids are paths of the user's module."""
    tokens, total = ["batch", "sequence"], ["batch", "past+sequence"]
    sizes: dict[str, list[str]] = {"input_ids": tokens, "attention_mask": total, "position_ids": tokens}
    for value, name in zip(model.graph.inputs, (*TOKENS, *cache_names(layers)), strict=True):
        assert value.shape is not None
        value.name = name
        if name in sizes:
            value.shape = ir.Shape(sizes[name])
        else:
            value.shape = ir.Shape(["batch", value.shape[1], "past", value.shape[3]])
    for value, name in zip(model.graph.outputs, ("logits", *cache_names(layers, PRESENT)), strict=True):
        value.name = name
    for value in list(model.graph.initializers.values()):
        if value.name and value.name.startswith(f"{_INNER}."):
            model.graph.initializers.pop(value.name)
            value.name = value.name.removeprefix(f"{_INNER}.")
            model.graph.register_initializer(value)
    for node in model.graph.all_nodes():
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        if scopes:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes.replace(f"'{_INNER}.", "'")


def empty_past(causal: Any) -> list[torch.Tensor]:
    """The cache before the first token, `[1, heads, 0, size]` each, as the model itself fills it.

    Raises:
        ConversionError: it keeps something else than keys and values.
    """
    cache, masks = Cache([]), dict.fromkeys(attention_kinds(causal.config), torch.zeros(1, 1, 1, 1))
    with torch.no_grad():
        causal(
            input_ids=torch.zeros(1, 1, dtype=torch.int64),
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=torch.zeros(1, 1, dtype=torch.int64),
            past_key_values=cache,
            use_cache=True,
        )
    kept = cache.tensors
    layers = causal.config.num_hidden_layers
    if len(kept) != 2 * layers or any(x.ndim != 4 for x in kept):
        raise ConversionError(f"it keeps {len(kept)} tensors, not the keys and values of {layers} layers")
    return [x[:, :, :0] for x in kept]
