"""Older spellings of operators that move elements; ONNX has each of them now."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.expansions.registry import expansion
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.shapes import rank


@expansion("ExpandDims")
def expand_dims(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = X with an axis of one element; the axis is a scalar, negative from the end of Y."""
    x, axis = operands(node)
    y = op.Unsqueeze(x, op.Cast(op.Reshape(axis, [1]), to=ir.DataType.INT64))
    y.shape = y.shape or ir.Shape([None] * (rank(x) + 1))
    return y


@expansion("GatherND", "Trilu")
def same_name(op: OpBuilder, node: ir.Node) -> ir.Value:
    """ONNX's operator of the same name and form."""
    return getattr(op, node.op_type)(*node.inputs, **node.attributes)


@expansion("Pad")
def pad(op: OpBuilder, node: ir.Node) -> ir.Value:
    """ONNX's Pad; the counts may stand in a row `[1, 2·rank]`, the number in a vector `[1]`."""
    x, pads, *value = operands(node)
    number = [op.Reshape(v, op.Constant(value=ir.tensor([], dtype=ir.DataType.INT64))) for v in value]
    return op.Pad(x, pads if rank(pads) == 1 else op.Reshape(pads, [-1]), *number, **node.attributes)


@expansion("Range")
def range_(op: OpBuilder, node: ir.Node) -> ir.Value:
    """ONNX's Range; the step is 1 unless given, and each number may stand in a vector `[1]`."""
    start, limit, *delta = (x if rank(x) == 0 else op.Squeeze(x, [0]) for x in operands(node))
    return op.Range(start, limit, delta[0] if delta else op.Cast(op.Constant(value_int=1), to=start.dtype))
