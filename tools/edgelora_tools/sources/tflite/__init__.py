"""A source that is a TFLite file: float32, weights in float16 or int8, and graphs in int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelora.errors import ConversionError
from edgelora_tools.sources.base import Source
from edgelora_tools.sources.inside import no_tensor
from edgelora_tools.sources.onnx_file import tokenizer_files

if TYPE_CHECKING:
    from edgelora_tools.sources.tflite.interpreter import Original
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
    from edgelora_tools.sources.tflite.interpreter import interpreter_module

    interpreter_module()  # what the source returns is compared with: better missed now than after the work
    return graph_source(path, read_model(path.read_bytes(), str(path)), tokenizer)


def graph_source(path: Path, graph: Graph, tokenizer: Path | None = None, channels_second: bool = False) -> Source:
    """The source of a graph that was read from `path`; its outputs may be any tensors that operators of it make.

    With `channels_second` outputs of four axes are `[N, C, h, w]`; inputs lie as in the file.

    Raises:
        ConversionError: operators without a translation, or a form that has none.
    """
    from edgelora_tools.sources.tflite.interpreter import Original
    from edgelora_tools.sources.tflite.translate import translate, weight_tensors

    try:
        model = translate(graph, channels_second)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    files, facts = tokenizer_files(tokenizer, required=True) if tokenizer is not None else ({}, {})
    known: dict[str, Any] = {**facts, "tflite": {"sha256": graph.sha256, "weights": weight_tensors(model)}}
    if _computes_in_codes(graph):
        known["source_precision"] = "int8"
    if (pixels := _pixels(graph)) is not None:
        known["image"] = pixels

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return Original(path, str(path), graph, channels_second).run(feeds)

    def otherwise(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        try:
            plain = Original(path, str(path), graph, channels_second, keep_all=True)
        except ConversionError:  # they have no custom operators
            return {}
        return plain.run(feeds)

    def reread(output: str | None, second: bool) -> Source:
        wanted = graph if output is None else _with_tensor(str(path), graph, output)
        maps = any(len(wanted.tensors[i].shape) == 4 for i in wanted.outputs)
        if wanted is graph and (second == channels_second or not maps):
            return source
        return graph_source(path, wanted, tokenizer, second)

    twice = None if "source_precision" in known else otherwise
    source = Source("tflite", path.stem, model, run, files, known, reread=reread, otherwise=twice)
    return source


def original_of(content: bytes, where: str, outputs: Sequence[str], channels_second: bool) -> Original:
    """TFLite's interpreter on a file's content, with these tensors as outputs; see `graph_source`.

    Raises:
        ConversionError: the interpreter is missing, the file is damaged, or has no such tensors.
    """
    from edgelora_tools.sources.tflite.interpreter import Original
    from edgelora_tools.sources.tflite.model import read_model

    graph = read_model(content, where)
    for name in outputs:
        graph = _with_tensor(where, graph, name)
    return Original(content, where, graph, channels_second)


def _with_tensor(where: str, graph: Graph, name: str) -> Graph:
    """The graph with the tensor `name` that an operator makes among its outputs.

    Raises:
        ConversionError: there is no such tensor (names that are close to it), or several have the name.
    """
    from edgelora_tools.sources.tflite.translate import tensor_names

    own = tensor_names(graph, graph.outputs, tensor_names(graph, graph.inputs).values())
    if name in own.values():
        return graph
    made = computed(graph)
    found = [i for i in made if graph.tensors[i].name == name]
    if not found:
        shapes = {graph.tensors[i].name: graph.tensors[i].shape for i in made}
        raise ConversionError(f"{where}: {no_tensor(name, shapes)}")
    if len(found) > 1:
        raise ConversionError(f"{where}: several tensors have the name {name!r}: none can be told from the others")
    return replace(graph, outputs=(*graph.outputs, found[0]))


def computed(graph: Graph) -> list[int]:
    """The tensors that operators make of inputs, in their order; not those that follow from constants alone."""
    alive, found = set(graph.inputs), list[int]()
    for node in graph.operators:
        if not alive.isdisjoint(node.inputs):
            alive.update(node.outputs)
            found.extend(node.outputs)
    return found


def _computes_in_codes(graph: Graph) -> bool:
    """Whether the interpreter rounds activations: they are codes, or meet weights that are (it then quantizes them)."""
    products = [n for n in graph.operators if n.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
    return any(graph.tensors[i].holds_codes for i in (*graph.inputs, *graph.outputs)) or any(
        graph.tensors[i].dtype in (np.int8, np.uint8) for n in products for i in n.inputs[:2] if i >= 0
    )


def _pixels(graph: Graph) -> dict[str, Any] | None:
    """How pixels from 0 to 255 become the input's real numbers, if it is a picture in codes of 8 bits: all of these.

    Real = scale·(code − zero), and the least code stands for 0: so real = pixel·scale − scale·(zero − least).
    """
    (tensor,) = [graph.tensors[i] for i in graph.inputs] if len(graph.inputs) == 1 else (None,)
    if tensor is None or len(tensor.shape) != 4 or tensor.shape[3] not in (1, 3):
        return None
    quantization = tensor.quantization
    if quantization is None or tensor.dtype not in (np.int8, np.uint8) or quantization.scale.size != 1:
        return None
    scale, zero = float(quantization.scale.reshape(-1)[0]), int(quantization.zero.reshape(-1)[0])
    return {"scale": scale, "mean": [scale * (zero - np.iinfo(tensor.dtype).min)]}
