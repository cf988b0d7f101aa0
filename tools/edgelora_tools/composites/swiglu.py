"""SwiGLU: Y = SiLU(X)∘U, the gate of a feed-forward block (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.registry import Composite, composite_node
from edgelora_tools.composites.silu import SILU
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import dims, known_equal
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.matching import both_orders


def recognise(node: ir.Node) -> ir.Node | None:
    """SiLU(X)∘U, both of one shape, where nothing else reads SiLU(X)."""
    for gate, u in both_orders(node.outputs[0], "Mul"):
        silu = gate.producer()
        if silu is None or (silu.domain, silu.op_type) != (DOMAIN, SILU.op_type):
            continue
        (x,), alone = operands(silu), len(gate.uses()) == 1 and not gate.is_graph_output()
        if alone and x.shape is not None and u.shape is not None and known_equal(dims(x), dims(u)):
            return composite_node("SwiGLU", [x, u])
    return None


@gradient_rule("SwiGLU", domain=DOMAIN)
def swiglu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X∘s∘U, s = σ(X).

    dX = dY∘(Y + s∘(U − Y))
    dU = dY∘X∘s

    A pass over memory fewer than by the rules of SiLU and Mul. s and X∘s are written out again, and merged with the
    forward pass's own when the graph is tidied.
    """
    (x, u), (y,) = operands(node), node.outputs
    return (
        lambda: op.Mul(dy, op.Add(y, op.Mul(op.Sigmoid(x), op.Sub(u, y)))),
        lambda: op.Mul(dy, op.Mul(x, op.Sigmoid(x))),
    )


def lower(op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
    """X∘Sigmoid(X)∘U."""
    x, u = operands(node)
    return (op.Mul(op.Mul(x, op.Sigmoid(x)), u),)


SWIGLU = Composite("SwiGLU", recognise, lower)
