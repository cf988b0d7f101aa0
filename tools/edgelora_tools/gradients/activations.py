"""Activation functions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.registry import Thunk, gradient_rule


@gradient_rule("Tanh")
def tanh(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Sequence[Thunk | None]:
    """Y = tanh(X); dX = dY·(1 − Y²)."""
    (y,) = node.outputs
    return (lambda: op.Mul(dy, op.Sub(1.0, op.Mul(y, y))),)


@gradient_rule("Softmax")
def softmax(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Sequence[Thunk | None]:
    """Y = softmax(X) along axis; dX = (dY − Σ dY∘Y)∘Y, the sum along the axis."""
    (y,) = node.outputs
    axis = [node.attributes.get_int("axis", -1)]
    return (lambda: op.Mul(op.Sub(dy, op.ReduceSum(op.Mul(dy, y), axis, keepdims=1)), y),)
