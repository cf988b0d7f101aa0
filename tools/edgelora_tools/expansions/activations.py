"""Activations with a bias or a scale in them."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.expansions.registry import expansion, uncovered
from edgelora_tools.gradients.nodes import operand, operands


@expansion("Gelu")
def gelu(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = Gelu(X)."""
    (x,) = operands(node)
    return op.Gelu(x)


@expansion("BiasGelu")
def bias_gelu(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = Gelu(X + B)."""
    x, b = operands(node)
    return op.Gelu(op.Add(x, b))


@expansion("FastGelu")
def fast_gelu(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = Gelu(X + B) in its form with tanh; B may be absent."""
    x, b = operand(node, 0), operand(node, 1)
    return op.Gelu(x if b is None else op.Add(x, b), approximate="tanh")


@expansion("QuickGelu")
def quick_gelu(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = X∘sigmoid(α·X), α = 1.702 by default."""
    (x,) = operands(node)
    return op.Mul(x, op.Sigmoid(op.Mul(x, node.attributes.get_float("alpha", 1.702))))


@expansion("ScaledSiLU")
def scaled_silu(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = Z∘sigmoid(Z), Z = α·X; an input takes the place of α."""
    x, scale = operand(node, 0), operand(node, 1)
    alpha = node.attributes.get_float("alpha", 1.0)
    z = op.Mul(x, alpha if scale is None else scale)
    return op.Mul(z, op.Sigmoid(z))


def activate(op: OpBuilder, y: ir.Value, activation: str, parameters: list[float]) -> ir.Value:
    """The activation inside a FusedGemm or FusedConv; `parameters` are its attributes in order."""
    given = dict(enumerate(parameters))
    match activation:
        case "":
            return y
        case "Relu" | "Sigmoid" | "Tanh" | "Softplus" | "Softsign" | "HardSwish":
            return getattr(op, activation)(y)
        case "LeakyRelu":
            return op.LeakyRelu(y, alpha=given.get(0, 0.01))
        case "Elu":
            return op.Elu(y, alpha=given.get(0, 1.0))
        case "ThresholdedRelu":
            return op.ThresholdedRelu(y, alpha=given.get(0, 1.0))
        case "HardSigmoid":
            return op.HardSigmoid(y, alpha=given.get(0, 0.2), beta=given.get(1, 0.5))
        case "Clip" if len(parameters) == 2:
            return op.Clip(y, *parameters)
    raise uncovered(f"has the activation {activation}")
