"""From a TFLite graph to an ONNX model: every operator by its translation, the batch open where the graph allows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from edgelora.errors import ConversionError
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.normalize import OPSET, onnx_errors
from edgelora_tools.passes.unsigned_codes import unsigned_codes
from edgelora_tools.runner import open_session, sample_inputs
from edgelora_tools.sources.tflite.model import Graph
from edgelora_tools.sources.tflite.operators import TRANSLATIONS
from edgelora_tools.sources.tflite.translation import FROM, Translation

BATCH = "batch"
_CLOSE = 1e-3


def translate(graph: Graph, channels_second: bool = False) -> ir.Model:
    """The ONNX model of `graph`, inputs and outputs in TFLite's layout and names; codes among them are real numbers.

    With `channels_second` outputs of four axes are `[N, C, h, w]`.

    Raises:
        ConversionError: operators that have no translation, all of them by name, or a form that has none.
    """
    unknown = Counter(node.kind for node in graph.operators if node.kind not in TRANSLATIONS)
    if unknown:
        listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(unknown.items()))
        raise ConversionError(
            f"no translation for {listed}; docs/operators.md lists what is read: convert the part before them, or an "
            "ONNX file of the model"
        )
    alone = _translated(graph, None, channels_second)
    if all(graph.tensors[i].shape[:1] == (1,) for i in (*graph.inputs, *graph.outputs)):
        try:
            together = _translated(graph, BATCH, channels_second)
        except ConversionError:
            return alone
        if _rows_alike(together):
            return together
    return alone


def weight_tensors(model: ir.Model) -> dict[str, int]:
    """The file's tensor behind each weight of a translated model, by the weight's name there."""
    return {name: v.meta[FROM] for name, v in model.graph.initializers.items() if FROM in v.meta}


def _translated(graph: Graph, batch: str | None, channels_second: bool) -> ir.Model:
    made = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="tflite")
    builder = GraphBuilder(made)
    state = Translation(graph, builder.op, batch)
    names = tensor_names(graph, graph.inputs)
    for index in graph.inputs:
        tensor = graph.tensors[index]
        dtype = ir.DataType.FLOAT if tensor.holds_codes else ir.DataType.from_numpy(tensor.dtype)
        x = ir.Value(name=names[index], shape=state.shape(index), type=ir.TensorType(dtype))
        made.inputs.append(x)
        state.put(index, builder.op.Cast(x, to=ir.DataType.INT64) if tensor.dtype == np.int32 else x)
    for position, node in enumerate(graph.operators):
        with onnx_errors(f"operator {position}, {node.kind}, is not one that its options and inputs allow"):
            try:
                TRANSLATIONS[node.kind](state, node)
            except KeyError as error:
                problem = f"operator {position}, {node.kind}, has no {error} among its options"
                raise ConversionError(f"{problem}: the file is damaged; copy or convert it again") from error
    names = tensor_names(graph, graph.outputs, names.values())
    for index in graph.outputs:
        tensor, second = graph.tensors[index], channels_second and state.rank(index) == 4
        value = state.first(index) if second else state.last(index)
        y = builder.op.Cast(value, to=ir.DataType.INT32) if tensor.dtype == np.int32 else builder.op.Identity(value)
        y.name, y.shape = names[index], state.shape(index, first=second)
        y.dtype = ir.DataType.FLOAT if tensor.holds_codes else ir.DataType.from_numpy(tensor.dtype)
        made.outputs.append(y)
    return unsigned_codes(ir.Model(made, ir_version=10, producer_name="edgelora"))


def tensor_names(graph: Graph, indices: Iterable[int], taken: Iterable[str] = ()) -> dict[int, str]:
    """The names of inputs or outputs, told apart where the file has one twice."""
    used, names = set(taken), {}
    for index in indices:
        name = unique = graph.tensors[index].name or f"tensor_{index}"
        n = 1
        while unique in used:
            n += 1
            unique = f"{name}_{n}"
        used.add(unique)
        names[index] = unique
    return names


def _rows_alike(model: ir.Model) -> bool:
    """Whether a batch of two gives what its rows give alone, by trial on ONNX Runtime."""
    feeds = sample_inputs(model, {BATCH: 2}, np.random.default_rng(0))
    try:
        with open_session(model) as session:
            together = session.run(None, feeds)
            rows = [session.run(None, {name: x[i : i + 1] for name, x in feeds.items()}) for i in range(2)]
    except Exception:  # ONNX Runtime raises a class of its own per status
        return False
    for y, *parts in zip(together, *rows, strict=True):
        if not _close(np.asarray(y, np.float64), np.concatenate(parts).astype(np.float64)):
            return False
    return True


def _close(y: np.ndarray, alone: np.ndarray) -> bool:
    """Whether some numbers of `alone` are finite, those of `y` are near them, and the others are the same."""
    finite = np.isfinite(alone)
    if y.shape != alone.shape or not finite.any() or not np.array_equal(y[~finite], alone[~finite], equal_nan=True):
        return False
    return bool(np.abs(y[finite] - alone[finite]).max() <= _CLOSE * np.abs(alone[finite]).max())
