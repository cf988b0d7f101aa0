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


def interpreter_module() -> Any:
    """The module with the interpreter, of whichever package has it.

    Raises:
        ConversionError: none is installed.
    """
    for package in _PACKAGES:
        try:
            return importlib.import_module(f"{package}.interpreter")
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != package:
                raise
    raise ConversionError(f"this needs TFLite's interpreter, as ai-edge-litert or tflite-runtime has it: {INSTALL}")


class Original:
    """TFLite's interpreter on a model, a file or its content: the outputs of `graph`, which may be tensors inside it.

    With `channels_second` those of four axes are `[N, C, h, w]`. `where` names the file in errors. To `keep_all`
    tensors, as for those inside, it runs its plain kernels instead of XNNPACK's.
    """

    def __init__(
        self, model: Path | bytes, where: str, graph: Graph, channels_second: bool = False, keep_all: bool = False
    ) -> None:
        self.graph, self.channels_second = graph, channels_second
        names = tensor_names(graph, graph.inputs)
        self._inputs, self._outputs = names, tensor_names(graph, graph.outputs, names.values())
        given: dict[str, Any] = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}
        try:
            self._interpreter = _open(given, keep_all)
            own = {int(told["index"]) for told in self._interpreter.get_output_details()}
            if not keep_all and not own.issuperset(graph.outputs):
                self._interpreter = _open(given, keep_all=True)
        except (RuntimeError, ValueError) as error:
            raise ConversionError(f"{where}: TFLite's interpreter refuses it: {str(error).splitlines()[0]}") from error

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """The inputs' shapes by name."""
        return {name: self.graph.tensors[i].shape for i, name in self._inputs.items()}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for a batch, a row at a time where the file takes one; codes are real numbers on both sides."""
        graph = self.graph
        given = {i: np.asarray(feeds[name]) for i, name in self._inputs.items()}
        rows = next((len(x) for i, x in given.items() if graph.tensors[i].shape[:1] == (1,)), 1)
        made: dict[str, list[np.ndarray]] = {name: [] for name in self._outputs.values()}
        for row in range(rows):
            for index, x in given.items():
                tensor = graph.tensors[index]
                x = x[row : row + 1] if tensor.shape[:1] == (1,) else x
                if tensor.holds_codes:
                    assert tensor.quantization is not None
                    x = quantized(x, tensor.quantization, tensor.dtype)
                self._interpreter.set_tensor(index, x.astype(tensor.dtype))
            self._interpreter.invoke()
            for index, name in self._outputs.items():
                made[name].append(self._output(index))
        return {name: np.concatenate(ys) if len(ys) > 1 else ys[0] for name, ys in made.items()}

    def _output(self, index: int) -> np.ndarray:
        tensor, y = self.graph.tensors[index], np.array(self._interpreter.get_tensor(index))
        if tensor.holds_codes:
            assert tensor.quantization is not None
            y = dequantized(y, tensor.quantization)
        return np.moveaxis(y, -1, 1) if self.channels_second and y.ndim == 4 else y


def _open(given: Mapping[str, Any], keep_all: bool) -> Any:
    """An interpreter that is ready to run; to keep all tensors, with its plain kernels alone."""
    module = interpreter_module()
    more: dict[str, Any] = {}
    if keep_all:
        plain = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        more = {"experimental_preserve_all_tensors": True, "experimental_op_resolver_type": plain}
    made = module.Interpreter(**given, **more, num_threads=1)
    made.allocate_tensors()
    return made
