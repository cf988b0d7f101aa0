"""Attention: scaled dot products, and the rotation of queries and keys by position."""

from __future__ import annotations

from functools import cache

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operand, operands, refuse
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import (
    annotate,
    dims,
    filled,
    indicator,
    known_equal,
    rank,
    reshape_like,
    size_of,
    transpose_last,
    unbroadcast,
)

_FORBIDDEN = -1e30  # finite: a row in which everything is forbidden must not become NaN


@gradient_rule("Attention")
def attention(op: OpBuilder, node: ir.Node, dy: ir.Value, *dcache: ir.Value | None) -> Thunks:
    """Y = P·V, P = softmax(S), S = c·Q·Kᵀ + M by row; Q, K, V are [batch, heads, positions, head size].

    dV = Pᵀ·dY
    dS = P∘(dY·Vᵀ − Σ dY∘Y), the sum over the head: it is the row's Σ dP∘P (Dao et al. 2022)
    dQ = c·dS·K
    dK = c·dSᵀ·Q
    dM = dS, summed to the shape of M

    P is computed again: it is the largest tensor of a transformer. Queries may share a key head, whose
    gradient is then the sum over its group; a soft cap b makes S = b·tanh(c·Q·Kᵀ/b) + M.
    """
    if any(x is not None for x in node.inputs[4:]) or any(d is not None for d in dcache):
        raise refuse(node, "has a key and value cache")
    q, k, v, m = (operand(node, i) for i in range(4))
    assert q is not None and k is not None and v is not None
    y = node.outputs[0]
    heads = node.attributes.get_int("q_num_heads", 0)
    key_heads = node.attributes.get_int("kv_num_heads", 0)
    cap = node.attributes.get_float("softcap", 0.0)

    @cache
    def by_head() -> tuple[ir.Value, ...]:
        """Q, K, V, Y, dY by head, K and V repeated for every query head that shares them."""
        q4, y4, dy4 = (_split_heads(op, x, heads) for x in (q, y, dy))
        k4, v4 = (_repeat_heads(op, _split_heads(op, x, key_heads), q4) for x in (k, v))
        return q4, k4, v4, y4, dy4

    c = cache(lambda: _scale(op, node, by_head()[0]))
    allowed = cache(lambda: _allowed(op, node, *by_head()[:2]))

    @cache
    def capped() -> ir.Value:
        q4, k4, *_ = by_head()
        s = op.MatMul(op.Mul(q4, c()), transpose_last(op, k4))
        return op.Mul(op.Tanh(op.Mul(s, 1.0 / cap)), cap) if cap else s

    @cache
    def p() -> ir.Value:
        s = capped()
        if (free := allowed()) is not None:
            s = op.Add(s, op.Mul(op.Sub(1.0, free), _FORBIDDEN))
        if m is not None and m.dtype != ir.DataType.BOOL:
            s = op.Add(s, m)
        return op.Softmax(s, axis=-1)

    @cache
    def dy_seen() -> ir.Value:
        """dY, and 0 in rows where everything is forbidden: there Y = 0."""
        dy4, free = by_head()[4], allowed()
        return dy4 if free is None else op.Mul(dy4, op.ReduceMax(free, [-1], keepdims=1))

    @cache
    def dbiased() -> ir.Value:
        _, _, v4, y4, _ = by_head()
        along = op.ReduceSum(op.Mul(dy_seen(), y4), [-1], keepdims=1)
        return op.Mul(p(), op.Sub(op.MatMul(dy_seen(), transpose_last(op, v4)), along))

    @cache
    def ds() -> ir.Value:
        if not cap:
            return dbiased()
        t = op.Mul(capped(), 1.0 / cap)
        return op.Mul(dbiased(), op.Sub(1.0, op.Mul(t, t)))

    def dq() -> ir.Value:
        return _merge_heads(op, op.Mul(op.MatMul(ds(), by_head()[1]), c()), q)

    def dk() -> ir.Value:
        return _sum_heads(op, op.MatMul(transpose_last(op, ds()), op.Mul(by_head()[0], c())), k, key_heads)

    def dv() -> ir.Value:
        return _sum_heads(op, op.MatMul(transpose_last(op, p()), dy_seen()), v, key_heads)

    return dq, dk, dv, lambda: unbroadcast(op, dbiased(), m)  # pyright: ignore[reportArgumentType]


def _scale(op: OpBuilder, node: ir.Node, q: ir.Value) -> ir.Value | float:
    """c, by default 1/√(head size)."""
    if "scale" in node.attributes:
        return node.attributes["scale"].as_float()
    size = dims(q)[-1]
    if isinstance(size, int):
        return size**-0.5
    return op.Reciprocal(op.Sqrt(op.Cast(size_of(op, q, -1), to=q.dtype)))


def _allowed(op: OpBuilder, node: ir.Node, q: ir.Value, k: ir.Value) -> ir.Value | None:
    """1 where a query may see a key, else 0; None where all is allowed."""
    m = operand(node, 3)
    mask = indicator(op, m, q) if m is not None and m.dtype == ir.DataType.BOOL else None
    if not node.attributes.get_int("is_causal", 0):
        return mask
    square = op.Concat(size_of(op, q, 2), size_of(op, k, 2), axis=0)
    past = op.Trilu(filled(op, 1.0, square, q), upper=0)
    return past if mask is None else op.Mul(mask, past)


def _split_heads(op: OpBuilder, x: ir.Value, heads: int) -> ir.Value:
    """`[batch, positions, heads·size]` as `[batch, heads, positions, size]`."""
    if rank(x) == 4:
        return x
    return op.Transpose(op.Reshape(x, [0, 0, heads, -1]), perm=[0, 2, 1, 3])


def _merge_heads(op: OpBuilder, dx: ir.Value, x: ir.Value) -> ir.Value:
    """The inverse of `_split_heads`, in the shape of `x`."""
    return annotate(dx, x) if rank(x) == 4 else reshape_like(op, op.Transpose(dx, perm=[0, 2, 1, 3]), x)


def _repeat_heads(op: OpBuilder, x: ir.Value, q: ir.Value) -> ir.Value:
    """`[batch, key heads, positions, size]`, each head repeated for the group of query heads that shares it."""
    if known_equal(dims(x)[1:2], dims(q)[1:2]):
        return x
    group = op.Div(size_of(op, q, 1), size_of(op, x, 1))
    apart = op.Expand(op.Unsqueeze(x, [2]), op.Concat([1, 1], group, [1, 1], axis=0))
    together = op.Reshape(apart, op.Concat([0], size_of(op, q, 1), size_of(op, x, 2), size_of(op, x, 3), axis=0))
    together.shape = ir.Shape([None] * 4)
    return together


def _sum_heads(op: OpBuilder, dx: ir.Value, x: ir.Value, heads: int) -> ir.Value:
    """The adjoint of `_repeat_heads` after `_split_heads`: the gradient of a key head is its group's sum."""
    key_heads = [heads] if rank(x) == 3 else size_of(op, x, 1)
    n, size = (size_of(op, dx, axis) for axis in (2, 3))
    apart = op.Reshape(dx, op.Concat([0], key_heads, [-1], n, size, axis=0))
    apart.shape = ir.Shape([None] * 5)
    return _merge_heads(op, op.ReduceSum(apart, [2], keepdims=0), x)


@gradient_rule("RotaryEmbedding")
def rotary_embedding(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = pairs of X rotated by the angles of their position; dX = pairs of dY rotated back, by −sin.

    The tables of cosines and sines are constants.
    """
    x, cos, sin, *positions = operands(node)
    return (lambda: annotate(op.RotaryEmbedding(dy, cos, op.Neg(sin), *positions, **node.attributes), x),)
