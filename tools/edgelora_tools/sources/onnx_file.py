"""A source that is an ONNX file, with or without external data, and a tokenizer beside it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort

from edgelora.errors import ConversionError
from edgelora_tools.normalize import onnx_errors
from edgelora_tools.passes.expand import learn_types
from edgelora_tools.passes.rotary_tables import has_shared_tables, repeat_rotary_tables
from edgelora_tools.runner import open_session, session_on
from edgelora_tools.sources.base import Source
from edgelora_tools.sources.inside import no_tensor

_FLOATS = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
_SMALL = 1024


def onnx_source(path: Path, tokenizer: Path | None = None) -> Source:
    """Read an ONNX file. The tokenizer is `tokenizer.json` beside it unless another is named.

    Raises:
        ConversionError: no such file, not ONNX, or its external data is missing.
    """
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    with onnx_errors(f"{path}: not a readable ONNX model"):
        model = ir.load(path)
        if not len(model.graph):
            raise ConversionError(f"{path}: not a readable ONNX model (it has no nodes)")
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                _check_external(path, value.const_value)
                if value.const_value.nbytes <= _SMALL:
                    value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    files, facts = tokenizer_files(tokenizer or path.parent / "tokenizer.json", required=tokenizer is not None)
    return _reading(path, model, model, files, facts)


def _reading(
    path: Path, file: ir.Model, model: ir.Model, files: Mapping[str, bytes], facts: Mapping[str, Any]
) -> Source:
    """The source that is `model`: the `file`, or that with a tensor inside it among its outputs."""
    outputs = [str(v.name) for v in model.graph.outputs]

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        session = _session_of(path, model, is_file=model is file)
        wanted = {x.name: x.type for x in session.get_inputs()}
        cast = {name: x.astype(_FLOATS.get(wanted[name], x.dtype)) for name, x in feeds.items() if name in wanted}
        return dict(zip(outputs, map(np.asarray, session.run(outputs, cast)), strict=True))

    def reread(output: str | None, _: bool) -> Source:
        if output is None or output in outputs:
            return source
        return _reading(path, file, with_tensor(model, output), files, facts)

    source = Source("onnx", path.stem, model, run, files, facts, reread=reread)
    return source


def with_tensor(model: ir.Model, name: str) -> ir.Model:
    """A copy of the model that returns the tensor `name` of its main graph too.

    Raises:
        ConversionError: there is no such tensor; names that are close to it.
    """
    made = model.clone()
    inner = {str(y.name): y for node in made.graph for y in node.outputs if y.name}
    if name not in inner:
        with contextlib.suppress(Exception):  # shapes are only shown here
            common.ShapeInferencePass()(made)
        raise no_tensor(name, {n: _told(y) for n, y in inner.items()})
    if inner[name].dtype is None or inner[name].shape is None:
        learn_types(made)
    made.graph.outputs.append(inner[name])
    return made


def _told(value: ir.Value) -> list[int | str | None] | None:
    return None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]


def _session_of(path: Path, model: ir.Model, is_file: bool) -> ort.InferenceSession:
    """The model; with tables of a batch of one, which ONNX Runtime would refuse, repeated for every row."""
    if is_file and not has_shared_tables(model):
        return session_on(path)
    with open_session(repeat_rotary_tables(model.clone())) as session:
        return session


def _check_external(path: Path, tensor: ir.ExternalTensor) -> None:
    data = Path(tensor.path)
    if not data.is_file():
        raise ConversionError(f"{path}: its external data {data.name} is missing; put it beside the model")
    end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if data.stat().st_size < end:
        raise ConversionError(
            f"{path}: its external data {data.name} has {data.stat().st_size:,} bytes and should have {end:,}; "
            "copy it again"
        )


def tokenizer_files(path: Path, required: bool) -> tuple[dict[str, bytes], dict[str, int]]:
    """The tokenizer's file for the bundle and what it says of padding and length.

    Raises:
        ConversionError: `required` and not there, or not a `tokenizer.json`.
    """
    if not path.is_file():
        if required:
            raise ConversionError(f"{path}: no such tokenizer file")
        return {}, {}
    content = path.read_bytes()
    try:
        body = json.loads(content)
        padding, truncation = body.get("padding") or {}, body.get("truncation") or {}
        added = {token["content"]: token["id"] for token in body.get("added_tokens", [])}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConversionError(f"{path}: not a tokenizer.json of the tokenizers library ({error})") from error
    pad = padding.get("pad_id", next((added[t] for t in ("[PAD]", "<pad>", "<|endoftext|>") if t in added), 0))
    return {"tokenizer.json": content}, {"pad_id": pad, "max_length": truncation.get("max_length", 128)}
