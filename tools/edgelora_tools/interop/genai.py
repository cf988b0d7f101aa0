"""A language model as a folder that ONNX Runtime GenAI generates from: the graph with a cache, and how it is fed.

GenAI (https://onnxruntime.ai/docs/genai/reference/config.html) gives no `last`, for its rows end together, and wants
logits `[batch, 1, vocabulary]`. Adapters are inputs that are absent until an .onnx_adapter file is active; where the
folder is one person's, they are constants beside the base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgelora.adapter import Adapter, absent_adapter
from edgelora.bundle import Bundle
from edgelora.errors import AdapterError, ConfigError, ConversionError
from edgelora.manifest import LORA_GRAPHS, LanguageModel, Manifest
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.interop.merging import make_constant
from edgelora_tools.interop.plain_onnx import forget_origins, give_defaults, save_plain
from edgelora_tools.interop.unsigned_weights import unsigned_weights
from edgelora_tools.language import LAST
from edgelora_tools.passes.free_names import free_names

MODEL_FILE, CONFIG_FILE = "model.onnx", "genai_config.json"
_ANY_DECODER = "decoder"  # a type of GenAI's: no more is asked of it than what the configuration tells
_INPUTS = {
    **{name: name for name in ("input_ids", "attention_mask", "position_ids")},
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
}
_OUTPUTS = {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}


def save_genai(bundle: Bundle, adapter: Adapter | None, folder: Path, external: bool = False) -> list[Path]:
    """Write the folder, of the base for any adapter or with this one; returns its files.

    Raises:
        ConfigError: the bundle holds no language model. AdapterError: the adapter does not fit, or its method has no
            inputs in this graph. ConversionError: the disk refuses.
    """
    manifest = bundle.manifest
    language = manifest.language
    if language is None:
        raise ConfigError(f"a bundle for {manifest.task} writes no text, and ONNX Runtime GenAI does nothing else")
    if adapter is not None:
        adapter.validate(manifest)
        if adapter.method.graphs != LORA_GRAPHS:
            raise AdapterError(f"{adapter.config.peft_type} adapters have no inputs in this graph: LoRA and VeRA have")
    files = save_plain(_graph(bundle, language, adapter), folder / MODEL_FILE, external)
    texts = {CONFIG_FILE: json.dumps(_config(manifest, language), indent=1).encode()}
    for name in (manifest.preprocessing.get("tokenizer"), language.chat_template):
        if name is not None:
            texts[name] = (bundle.path / name).read_bytes()
    try:
        for name, content in texts.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConversionError(f"{folder} could not be written: {error.strerror or error}") from error
    return [*files, *(folder / name for name in texts)]


def _graph(bundle: Bundle, language: LanguageModel, adapter: Adapter | None) -> ir.Model:
    """The graph with a cache, which takes what GenAI gives."""
    model = ir.load(bundle.verified().path / language.decode)
    graph = model.graph
    if adapter is None:
        give_defaults(graph, bundle.manifest)
    else:
        feeds = absent_adapter(bundle.manifest) | bundle.feeds(adapter)
        make_constant(graph, feeds, set(feeds), gone=set())
    unsigned_weights(graph)
    op = GraphBuilder(free_names(graph)).op
    ids, last = (next(value for value in graph.inputs if value.name == name) for name in ("input_ids", LAST))
    batch, width = (op.Shape(ids, start=axis, end=axis + 1) for axis in (0, 1))
    last.replace_all_uses_with(op.Expand(op.Sub(width, [1]), batch))
    graph.inputs.remove(last)
    place = next(i for i, value in enumerate(graph.outputs) if value.name == "logits")
    logits = graph.outputs[place]
    logits.name = "logits.rows"
    told = op.Unsqueeze(logits, [1])
    told.name, told.type = "logits", logits.type
    told.shape = ir.Shape([ids.shape[0] if ids.shape else None, 1, language.vocabulary])
    graph.outputs[place] = told
    graph.sort()
    forget_origins(model)
    return model


def _config(manifest: Manifest, language: LanguageModel) -> dict[str, Any]:
    """What GenAI reads of a model."""
    most = language.max_length or manifest.preprocessing["max_length"]
    decoder = {
        "filename": MODEL_FILE,
        "head_size": language.head_size,
        "num_key_value_heads": language.kv_heads,
        "num_hidden_layers": language.layers,
        "session_options": {"provider_options": []},
        "inputs": _INPUTS,
        "outputs": _OUTPUTS,
    }
    body = {
        "type": _ANY_DECODER,
        "context_length": most,
        "vocab_size": language.vocabulary,
        "pad_token_id": manifest.preprocessing.get("pad_id", 0),
        "eos_token_id": list(language.eos),
        "decoder": decoder,
    }
    if language.bos is not None:
        body["bos_token_id"] = language.bos
    return {"model": body, "search": {"max_length": most, "past_present_share_buffer": False}}
