"""Elementwise arithmetic: with the channels second if an operand is held so and all others can follow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.operators.activations import activated
from edgelora_tools.sources.tflite.operators.registry import translation
from edgelora_tools.sources.tflite.translation import Translation

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
    if node.kind == "SQUARE":
        operands = [operands[0], operands[0]]
    y = getattr(op, _DIRECT.get(node.kind, "Mul"))(*operands)
    state.put(node.outputs[0], activated(state, node, y), first)


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
