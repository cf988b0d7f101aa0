"""Pooling: a window's mean, of what lies inside the picture alone, or its largest."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import tflite

from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.operators.activations import activated
from edgelora_tools.sources.tflite.operators.convolution import window_attributes
from edgelora_tools.sources.tflite.operators.registry import translation, uncovered
from edgelora_tools.sources.tflite.translation import Translation

_NONE = tflite.ActivationFunctionType.NONE
_COUNTED = 4096  # of more, float32 does not tell a middle between codes from what is beside it


@translation("AVERAGE_POOL_2D", "MAX_POOL_2D")
def pool(state: Translation, node: Operator) -> None:
    """Y = the mean or the maximum of every window of X."""
    (x,), (y,) = node.inputs, node.outputs
    if state.rank(x) != 4:
        raise uncovered(node, "of other than four axes")
    window = [int(node.options["FilterHeight"]), int(node.options["FilterWidth"])]
    attributes = window_attributes(node, state.tensor(x).shape[1:3], window, [1, 1])
    attributes["kernel_shape"] = window
    if node.kind == "MAX_POOL_2D":
        state.put(y, activated(state, node, state.op.MaxPool(state.first(x), **attributes)), True, x)
    elif _keeps_codes(state, node) and math.prod(window) <= _COUNTED:
        state.put(y, _mean_code(state, x, attributes), True, x)
    else:
        whole = (*window, 1, 1) == (*state.tensor(x).shape[1:3], *state.tensor(y).shape[1:3])
        made = _mean(state, x) if whole else state.op.AveragePool(state.first(x), **attributes, count_include_pad=0)
        state.put(y, activated(state, node, made), True)


def _mean(state: Translation, index: int) -> ir.Value:
    """The mean of a picture: a reduction sums in parts, which are ten times as exact as AveragePool's one sum."""
    return state.op.ReduceMean(state.first(index), state.op.Constant(value_ints=[2, 3]), keepdims=1)


def _keeps_codes(state: Translation, node: Operator) -> bool:
    """Whether input and output are codes of the same numbers, with nothing fused between them."""
    x, y = (state.tensor(i).quantization for i in (node.inputs[0], node.outputs[0]))
    plain = node.options.get("FusedActivationFunction", _NONE) == _NONE
    return plain and x is not None and y is not None and x.same_as(y)


def _mean_code(state: Translation, index: int, attributes: dict[str, Any]) -> ir.Value:
    """The mean of codes as the interpreter rounds it: one in 64 means of 8 × 8 lies between two, and goes away from 0.

    Means are multiples of 1/count, so what a factor of 1 + 1/(512·count) moves across is such a middle alone.
    """
    tensor, op = state.tensor(index), state.op
    told, window = tensor.quantization, attributes["kernel_shape"]
    assert told is not None
    scale, zero = float(told.scale[0]), float(told.zero[0])
    mean = op.AveragePool(op.Div(state.first(index), scale), **attributes, count_include_pad=0)
    away = op.Mul(op.Add(mean, zero), 1 + 1 / (512 * math.prod(window)))
    away.dtype = ir.DataType.FLOAT
    return state.rounded(away, tensor, 0)
