"""Elementwise arithmetic with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.registry import Thunk, gradient_rule
from edgelora_tools.gradients.shapes import unbroadcast


@gradient_rule("Add")
def add(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Sequence[Thunk | None]:
    """Y = A + B; dA = dY, dB = dY."""
    a, b = node.inputs
    assert a is not None and b is not None
    return lambda: unbroadcast(op, dy, a), lambda: unbroadcast(op, dy, b)


@gradient_rule("Mul")
def mul(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Sequence[Thunk | None]:
    """Y = A∘B; dA = dY∘B, dB = dY∘A."""
    a, b = node.inputs
    assert a is not None and b is not None
    return (
        lambda: unbroadcast(op, op.Mul(dy, b), a),
        lambda: unbroadcast(op, op.Mul(dy, a), b),
    )
