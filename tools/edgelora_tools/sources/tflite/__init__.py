"""A source that is a TFLite file: float32, weights in float16 or int8, and graphs in int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelora.errors import ConversionError
from edgelora_tools.sources.base import Source
from edgelora_tools.sources.onnx_file import tokenizer_files

if TYPE_CHECKING:
    from edgelora_tools.sources.tflite.model import Graph


def tflite_source(path: Path, tokenizer: Path | None = None) -> Source:
    """Read a TFLite file and translate its graph.

    Inputs and outputs keep their names and layout, with a batch that is dynamic where the graph allows it. Those that
    are codes in the file are real numbers here.

    Raises:
        ConversionError: no such file, not TFLite, damaged, operators without a translation, or a missing package.
    """
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    try:
        from edgelora_tools.sources.tflite.model import read_model
    except ModuleNotFoundError as error:
        if error.name not in ("tflite", "flatbuffers"):
            raise
        raise ConversionError(f'this needs the TFLite schema: pip install "edgelora[tflite]" ({error})') from error
    return graph_source(path, read_model(path.read_bytes(), str(path)), tokenizer)


def graph_source(path: Path, graph: Graph, tokenizer: Path | None = None) -> Source:
    """The source of a graph that was read from `path`; its outputs may be any tensors that the interpreter keeps.

    Raises:
        ConversionError: operators without a translation, or a form that has none.
    """
    from edgelora_tools.sources.tflite.interpreter import run_interpreter
    from edgelora_tools.sources.tflite.translate import translate

    try:
        model = translate(graph)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    files, facts = tokenizer_files(tokenizer, required=True) if tokenizer is not None else ({}, {})
    known: dict[str, Any] = dict(facts)
    if _computes_in_codes(graph):
        known["source_precision"] = "int8"
    return Source("tflite", path.stem, model, lambda feeds: run_interpreter(path, graph, feeds), files, known)


def _computes_in_codes(graph: Graph) -> bool:
    """Whether the interpreter rounds activations: they are codes, or meet weights that are (it then quantizes them)."""
    products = [n for n in graph.operators if n.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
    return any(graph.tensors[i].holds_codes for i in (*graph.inputs, *graph.outputs)) or any(
        graph.tensors[i].dtype in (np.int8, np.uint8) for n in products for i in n.inputs[:2] if i >= 0
    )
