"""A bundle's base as a plain ONNX model in files of its own, and as one that takes adapters through inputs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgelora.bundle import Bundle
from edgelora.errors import ConversionError
from edgelora.manifest import Manifest
from edgelora_tools.interop.unsigned_weights import unsigned_weights

INLINE_LIMIT = 3 << 29  # bytes of weights; a file of protocol buffers holds 2 GiB
EXTERNAL_FROM = 1024


def with_adapter_inputs(bundle: Bundle) -> ir.Model:
    """The inference graph, whose adapter inputs have a default: rank 0, and a head without outputs.

    ONNX Runtime's Python asks for every input that has none before it looks at `RunOptions.add_active_adapter`.
    """
    model = ir.load(bundle.verified().path / bundle.manifest.forward)
    give_defaults(model.graph, bundle.manifest)
    unsigned_weights(model.graph)
    forget_origins(model)
    return model


def give_defaults(graph: ir.Graph, manifest: Manifest) -> None:
    """Make the adapter inputs of a graph optional: rank 0, and a head without outputs."""
    shapes = {p.input_a: p.shape_a(0) for p in manifest.points} | {p.input_b: p.shape_b(0) for p in manifest.points}
    if manifest.head is not None:
        shapes |= {manifest.head.weight: (0, manifest.head.features), manifest.head.bias: (0,)}
    for value in graph.inputs:
        if value.name in shapes:
            value.const_value = ir.tensor(np.zeros(shapes[value.name], np.float32), name=value.name)
            graph.initializers[value.name] = value


def save_plain(model: ir.Model, path: Path, external: bool = False) -> list[Path]:
    """Write the model, its weights beside it as `NAME.data` if `external`, or if one file cannot hold them.

    Returns the files.

    Raises:
        ConversionError: the disk refuses, or `path` is a directory.
    """
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data = f"{path.name}.data" if external or total > INLINE_LIMIT else None
    names = [path.name] if data is None else [data, path.name]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ConversionError(f"{path} is a directory: name the file to write")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder)
            if data is None:
                ir.external_data.load_to_model(model)
            ir.save(model, made / path.name, external_data=data, size_threshold_bytes=EXTERNAL_FROM)
            for name in names:
                (made / name).replace(path.parent / name)
    except OSError as error:
        raise ConversionError(f"{path} could not be written: {error.strerror or error}") from error
    return [path.parent / name for name in reversed(names)]


def forget_origins(model: ir.Model) -> None:
    """No names of tools, exporters and source files."""
    model.producer_name, model.producer_version, model.doc_string = "", "", ""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = ""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = ""
        for value in node.outputs:
            value.metadata_props.clear()
