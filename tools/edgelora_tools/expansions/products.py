"""Matrix products and convolutions with transpositions, scales and activations in them."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.expansions.activations import activate
from edgelora_tools.expansions.registry import called, expansion
from edgelora_tools.gradients.nodes import operand, operands
from edgelora_tools.gradients.shapes import rank

_GEMM = ("alpha", "beta", "transA", "transB")
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@expansion("FusedMatMul", "TransposeMatMul")
def fused_matmul(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = α·A·B, either factor transposed first: its matrices (transA), or its first axis moved inwards."""
    a, b = (_arranged(op, node, x, side) for x, side in zip(operands(node), "AB", strict=True))
    y = called(op.MatMul(a, b), node.name)
    alpha = node.attributes.get_float("alpha", 1.0)
    return y if alpha == 1.0 else op.Mul(y, alpha)


def _arranged(op: OpBuilder, node: ir.Node, x: ir.Value, side: str) -> ir.Value:
    """`x` with the transpositions that the node asks for; a vector has none."""
    transposed = node.attributes.get_int(f"trans{side}", 0)
    inwards = node.attributes.get_int(f"transBatch{side}", 0)
    if not (transposed or inwards) or rank(x) < 2:
        return x
    order = list(range(rank(x)))
    if inwards:
        order = [*order[1:-1], 0, order[-1]]
    if transposed:
        order[-2:] = order[:-3:-1]
    return x if order == sorted(order) else op.Transpose(x, perm=order)


@expansion("FusedGemm")
def fused_gemm(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = f(α·A·B + β·C), A and B transposed on demand."""
    kept = {name: value for name, value in node.attributes.items() if name in _GEMM}
    y = called(op.Gemm(*node.inputs, **kept), node.name)
    names = [f"activation_{letter}" for letter in ("alpha", "beta", "gamma")]
    parameters = [node.attributes[name].as_float() for name in names if name in node.attributes]
    return activate(op, y, node.attributes.get_string("activation", ""), parameters)


@expansion("FusedConv")
def fused_conv(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = f(Conv(X, W, B) + Z); B and Z may be absent."""
    kept = {name: value for name, value in node.attributes.items() if name in _CONV}
    y = called(op.Conv(*node.inputs[:3], **kept), node.name)
    z = operand(node, 3)
    y = y if z is None else op.Add(y, z)
    parameters = list(node.attributes.get_floats("activation_params", ()))
    return activate(op, y, node.attributes.get_string("activation", ""), parameters)
