"""The end of attention: Y = softmax(S)·V, however the scores S were made (Vaswani et al. 2017)."""

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
    """softmax(S)·V over the last axis; rows that are NaN, because all of S is −∞ there, may be set to 0."""
    if node.op_type != "MatMul" or node.domain:
        return None
    p, v = node.inputs
    if p is None or v is None or p.shape is None or v.shape is None or len(p.shape) != len(v.shape):
        return None
    safe, softmax = _zero_where_nan(p), made_by(p, "Softmax")
    softmax = softmax if safe is None else made_by(safe, "Softmax")
    if softmax is None or softmax.attributes.get_int("axis", -1) not in (-1, len(p.shape) - 1):
        return None
    readers = 1 if safe is None else 2
    made = softmax.outputs[0]
    if len(made.uses()) != readers or len(p.uses()) != 1 or made.is_graph_output() or p.is_graph_output():
        return None
    (scores,) = operands(softmax)
    attend = composite_node("Attend", [scores, v], {"zero_where_nan": int(safe is not None)}, outputs=2)
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

    P is the largest tensor of a transformer, and the sum is taken over one as small as Y instead: a temporary of
    the size of P fewer. A row of P that was NaN is 0, and so is its gradient, without the mask and the passes that
    the rule of Where would need.
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
    """Softmax, zeros for NaN where the source has them, MatMul."""
    scores, v = operands(node)
    p = op.Softmax(scores, axis=-1)
    if node.attributes.get_int("zero_where_nan", 0):
        p = op.Where(op.IsNaN(p), 0.0, p)
    return op.MatMul(p, v), p


ATTEND = Composite("Attend", recognise, lower)
