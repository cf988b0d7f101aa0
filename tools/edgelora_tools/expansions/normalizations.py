"""Normalizations that add a residual first, or divide by the root mean square alone."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.expansions.registry import expansion, is_read, uncovered
from edgelora_tools.gradients.nodes import operand, operands
from edgelora_tools.gradients.shapes import axis_of, rank


@expansion("SimplifiedLayerNormalization", domain="")
def simplified_layer_normalization(op: OpBuilder, node: ir.Node) -> tuple[ir.Value, ...]:
    """Y = X∘R∘G, R = 1/√(mean(X²) + ε) over the axes from `axis` on; R is the second output."""
    x, scale = operands(node)
    axes = list(range(axis_of(node.attributes.get_int("axis", -1), x), rank(x)))
    return _by_root_mean_square(op, x, scale, axes, node.attributes.get_float("epsilon", 1e-5))


@expansion("SkipLayerNormalization")
def skip_layer_normalization(op: OpBuilder, node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Y = LayerNormalization(S, G, B) over the last axis, S = X + Skip + Bias; then its mean, 1/deviation, and S.

    Inputs: X, Skip, G, B (may be absent), Bias (may be absent).
    """
    x, skip, scale, shift, bias = (operand(node, i) for i in range(5))
    s = _sum(op, x, skip, bias)
    inputs = [s, scale] if shift is None else [s, scale, shift]
    epsilon = node.attributes.get_float("epsilon", 1e-12)
    if is_read(node, 1) or is_read(node, 2):
        return *op.LayerNormalization(*inputs, axis=-1, epsilon=epsilon, _outputs=3), s
    y = op.LayerNormalization(*inputs, axis=-1, epsilon=epsilon)
    return y, None, None, s


@expansion("SkipSimplifiedLayerNormalization")
def skip_simplified_layer_normalization(op: OpBuilder, node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Y = S∘R∘G, R = 1/√(mean(S²) + ε) over the last axis, S = X + Skip + Bias; R is the third output, S the fourth.

    Inputs: X, Skip, G, Bias (may be absent).
    """
    if is_read(node, 1):
        raise uncovered("is asked for a mean, which it does not compute")
    x, skip, scale, bias = (operand(node, i) for i in range(4))
    assert scale is not None
    s = _sum(op, x, skip, bias)
    y, r = _by_root_mean_square(op, s, scale, [-1], node.attributes.get_float("epsilon", 1e-12))
    return y, None, r, s


def _by_root_mean_square(
    op: OpBuilder, x: ir.Value, scale: ir.Value, axes: list[int], epsilon: float
) -> tuple[ir.Value, ir.Value]:
    mean = op.ReduceMean(op.Mul(x, x), axes, keepdims=1)
    r = op.Reciprocal(op.Sqrt(op.Add(mean, epsilon)))
    return op.Mul(op.Mul(x, r), scale), r


def _sum(op: OpBuilder, x: ir.Value | None, skip: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    s = op.Add(x, skip)
    return s if bias is None else op.Add(s, bias)
