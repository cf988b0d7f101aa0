"""Elementwise arithmetic: with the channels second if an operand is held so and all others can follow."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import tflite

from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.operators.activations import activated
from edgelora_tools.sources.tflite.operators.registry import translation
from edgelora_tools.sources.tflite.translation import Translation

_NONE, _RELU = tflite.ActivationFunctionType.NONE, tflite.ActivationFunctionType.RELU
_DIRECT = {
    "ADD": "Add",
    "SUB": "Sub",
    "MUL": "Mul",
    "DIV": "Div",
    "NEG": "Neg",
    "LOG": "Log",
    "SQRT": "Sqrt",
    "EQUAL": "Equal",
    "SELECT_V2": "Where",
}


@translation(*_DIRECT, "SQUARE")
def elementwise(state: Translation, node: Operator) -> None:
    """Y = f(A, B, …) with numpy's broadcasting, and the fused activation of it."""
    op = state.op
    operands, first = aligned(state, node.inputs)
    if node.kind == "ADD" and _sums_codes(state, node):
        state.put(node.outputs[0], _sum_of_codes(state, node, operands), first, node.outputs[0])
        return
    if node.kind == "SQUARE":
        operands = [operands[0], operands[0]]
    y = getattr(op, _DIRECT.get(node.kind, "Mul"))(*operands)
    state.put(node.outputs[0], activated(state, node, y), first)


def _sums_codes(state: Translation, node: Operator) -> bool:
    """Whether computed codes are summed to codes, and what is fused is the same for numbers of any scale."""
    scaled = [state.tensor(i).holds_codes and state.tensor(i).data is None for i in (*node.inputs, *node.outputs)]
    return all(scaled) and node.options.get("FusedActivationFunction", _NONE) in (_NONE, _RELU)


def _sum_of_codes(state: Translation, node: Operator, operands: list[ir.Value]) -> ir.Value:
    """The sum in units of the output's scale, of codes times factors that XNNPACK rounds to 21 bits of the larger."""
    op, out = state.op, state.tensor(node.outputs[0])
    told = [state.tensor(i).quantization for i in (*node.inputs, *node.outputs)]
    *scales, unit = (found.scale[0] for found in told if found is not None)
    ratios = [float(scale / unit) for scale in scales]  # of float32, as there
    step = 2.0 ** (math.frexp(max(ratios))[1] - 21)
    parts = [
        op.Mul(op.Div(x, float(scale)), float(np.rint(ratio / step) * step))
        for x, scale, ratio in zip(operands, scales, ratios, strict=True)
    ]
    made = activated(state, node, op.Add(*parts))
    made.dtype = ir.DataType.FLOAT
    assert out.quantization is not None
    return state.rounded(made, out, float(out.quantization.zero[0]))


def aligned(state: Translation, inputs: tuple[int, ...]) -> tuple[list[ir.Value], bool]:
    """The operands in one layout, and whether that has the channels second."""
    known = [None if state.is_first(i) else state.constant(i) for i in inputs]
    computed = [i for i, array in zip(inputs, known, strict=True) if array is None]
    first = any(map(state.is_first, computed)) and all(state.rank(i) == 4 for i in computed)
    if not first:
        return [state.last(i) for i in inputs], False
    return [
        state.first(i) if array is None else _constant_first(state, i, array)
        for i, array in zip(inputs, known, strict=True)
    ], True


def _constant_first(state: Translation, index: int, array: np.ndarray) -> ir.Value:
    """A constant that broadcasts against a tensor with its channels second."""
    if array.ndim:
        array = array.reshape([1] * (4 - array.ndim) + list(array.shape)).transpose(0, 3, 1, 2)
    name = f"constant.{index}.first.{len(state.op.builder.graph.initializers)}"
    return state.initializer(np.ascontiguousarray(array), name)
