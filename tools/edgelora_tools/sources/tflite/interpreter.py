"""The original: TFLite's own interpreter, one sample at a time."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgelora.errors import ConversionError
from edgelora_tools.sources.tflite.model import Graph
from edgelora_tools.sources.tflite.translate import tensor_names
from edgelora_tools.sources.tflite.translation import dequantized, quantized

_PACKAGES = ("ai_edge_litert", "tflite_runtime")
INSTALL = 'pip install "edgelora[tflite]"'


def interpreter_class() -> Any:
    """The interpreter of whichever package has it.

    Raises:
        ConversionError: none is installed.
    """
    for package in _PACKAGES:
        try:
            return importlib.import_module(f"{package}.interpreter").Interpreter
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != package:
                raise
    raise ConversionError(f"this needs TFLite's interpreter, as ai-edge-litert has it: {INSTALL}")


def run_interpreter(path: Path, graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's outputs for a batch, a row at a time where it takes one; codes are made of `feeds`, and real again.

    Raises:
        ConversionError: the interpreter is missing or refuses the file.
    """
    names = tensor_names(graph, graph.inputs)
    output_names = tensor_names(graph, graph.outputs, names.values())
    try:
        interpreter = interpreter_class()(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ConversionError(f"{path}: TFLite's interpreter refuses it: {str(error).splitlines()[0]}") from error
    given = {i: np.asarray(feeds[name]) for i, name in names.items()}
    rows = next((len(x) for i, x in given.items() if graph.tensors[i].shape[:1] == (1,)), 1)
    made: dict[str, list[np.ndarray]] = {name: [] for name in output_names.values()}
    for row in range(rows):
        for index, x in given.items():
            tensor = graph.tensors[index]
            x = x[row : row + 1] if tensor.shape[:1] == (1,) else x
            if tensor.holds_codes:
                assert tensor.quantization is not None
                x = quantized(x, tensor.quantization, tensor.dtype)
            interpreter.set_tensor(index, x.astype(tensor.dtype))
        interpreter.invoke()
        for index, name in output_names.items():
            tensor, y = graph.tensors[index], interpreter.get_tensor(index)
            if tensor.holds_codes:
                assert tensor.quantization is not None
                y = dequantized(y, tensor.quantization)
            made[name].append(np.array(y))
    return {name: np.concatenate(ys) if len(ys) > 1 else ys[0] for name, ys in made.items()}
