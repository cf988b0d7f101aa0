"""The end of attention as torch exports `scaled_dot_product_attention`: Y = P·V, P = softmax(S), 0 where that is NaN.

The scores S may have been made in any way (Vaswani et al. 2017). Without the zeros it is a composite where rows are
long, as those of language models are in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.registry import Composite, composite_node
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import transpose_last, unbroadcast
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.matching import in_order, is_number, made_by


def recognise(node: ir.Node) -> ir.Node | None:
    """softmax(S)·V over the last axis, with 0 for rows that are NaN because all of S is −∞ there."""
    return _recognised(node, safe=True)


def recognise_plain(node: ir.Node) -> ir.Node | None:
    """softmax(S)·V over the last axis."""
    return _recognised(node, safe=False)


def _recognised(node: ir.Node, safe: bool) -> ir.Node | None:
    if node.op_type != "MatMul" or node.domain:
        return None
    p, v = node.inputs
    if p is None or v is None or p.shape is None or v.shape is None or len(p.shape) != len(v.shape):
        return None
    made = _zero_where_nan(p) if safe else p
    softmax = made_by(made, "Softmax")
    if made is None or softmax is None or softmax.attributes.get_int("axis", -1) not in (-1, len(p.shape) - 1):
        return None
    if len(made.uses()) != (2 if safe else 1) or len(p.uses()) != 1 or made.is_graph_output() or p.is_graph_output():
        return None
    (scores,) = operands(softmax)
    attend = composite_node("Attend", [scores, v], {"safe": int(safe)}, outputs=2)
    attend.outputs[1].shape, attend.outputs[1].type = p.shape, p.type
    attend.outputs[1].name = f"{node.outputs[0].name}.probabilities"
    return attend


def _zero_where_nan(p: ir.Value) -> ir.Value | None:
    """P of Where(IsNaN(P), 0, P)."""
    for condition, zero, kept in in_order(p, "Where"):
        if is_number(zero, 0.0) and any(x is kept for (x,) in in_order(condition, "IsNaN")):
            return kept
    return None


@gradient_rule("Attend", domain=DOMAIN)
def attend(op: OpBuilder, node: ir.Node, dy: ir.Value, dp: None = None) -> Thunks:
    """P = softmax(S), Y = P·V.

    dV = Pᵀ·dY
    dS = P∘(dY·Vᵀ − Σ dY∘Y), the sum over the head: it is the row's Σ dP∘P (Dao et al. 2022)

    P is the largest tensor of a transformer. A row of it that was NaN is 0, and so is its gradient, without the mask
    and the passes over P that the rule of Where would need. Two more are spared by the sum, which reads Y for P: that
    pays where rows are longer than a head is wide (docs/decisions/0011, 0048).
    """
    scores, v = operands(node)
    y, p = node.outputs

    @cache
    def ds() -> ir.Value:
        along = op.ReduceSum(op.Mul(dy, y), [-1], keepdims=1)
        return op.Mul(p, op.Sub(op.MatMul(dy, transpose_last(op, v)), along))

    return (
        lambda: unbroadcast(op, ds(), scores),
        lambda: unbroadcast(op, op.MatMul(transpose_last(op, p), dy), v),
    )


def lower(op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
    """Softmax, zeros for NaN, MatMul."""
    scores, v = operands(node)
    p = op.Softmax(scores, axis=-1)
    if node.attributes.get_int("safe", 1):
        p = op.Where(op.IsNaN(p), 0.0, p)
    return op.MatMul(p, v), p


ATTEND = Composite("Attend", recognise, lower)
PLAIN_ATTEND = Composite("Attend", recognise_plain, lower)
