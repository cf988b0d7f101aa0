"""SiLU (Swish): Y = X∘σ(X) (Elfwing et al. 2017; Ramachandran et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.registry import Composite, composite_node
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.matching import both_orders, in_order


def recognise(node: ir.Node) -> ir.Node | None:
    """X∘Sigmoid(X)."""
    for x, gate in both_orders(node.outputs[0], "Mul"):
        if any(argument is x for (argument,) in in_order(gate, "Sigmoid")):
            return composite_node("Silu", [x])
    return None


@gradient_rule("Silu", domain=DOMAIN)
def silu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X∘s, s = σ(X); dX = dY∘s∘(1 + X − Y).

    Two passes over memory and one temporary fewer than by the rules of Mul and Sigmoid. s is written out again, and
    merged with the forward pass's own when the graph is tidied.
    """
    (x,), (y,) = operands(node), node.outputs

    def dx() -> ir.Value:
        return op.Mul(dy, op.Mul(op.Sigmoid(x), op.Add(op.Sub(x, y), 1.0)))

    return (dx,)


def lower(op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
    """X∘Sigmoid(X)."""
    (x,) = operands(node)
    return (op.Mul(x, op.Sigmoid(x)),)


SILU = Composite("Silu", recognise, lower)
