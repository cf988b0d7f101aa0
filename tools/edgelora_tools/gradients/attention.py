"""Attention: scaled dot products, and the rotation of queries and keys by position."""

from __future__ import annotations

import math
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
    shape_of,
    size_of,
    transpose_last,
    unbroadcast,
    zeros_like,
)

_FORBIDDEN = -1e30  # finite: a row in which everything is forbidden must not become NaN
_END = 2**31 - 1


@gradient_rule("Attention")
def attention(
    op: OpBuilder,
    node: ir.Node,
    dy: ir.Value | None,
    dkeys: ir.Value | None = None,
    dvalues: ir.Value | None = None,
    dscores: None = None,
) -> Thunks:
    """Y = P·V, P = softmax(S), S = c·Q·Kᵀ + M by row; Q, K, V are [batch, heads, positions, head size].

    dV = Pᵀ·dY
    dS = P∘(dY·Vᵀ − Σ dY∘Y), the sum over the head: it is the row's Σ dP∘P (Dao et al. 2022)
    dQ = c·dS·K
    dK = c·dSᵀ·Q
    dM = dS, summed to the shape of M

    P is computed again: it is the largest tensor of a transformer. Queries may share a key head, whose
    gradient is then the sum over its group; a soft cap b makes S = b·tanh(c·Q·Kᵀ/b) + M. With a cache, K and V
    are the past ones and the new ones, which are outputs too: their cotangents add to dK and dV.
    """
    q, k, v, m, past_k, past_v, lengths = (operand(node, i) for i in range(7))
    assert q is not None and k is not None and v is not None
    if dscores is not None:
        raise refuse(node, "has its scores differentiated")
    if lengths is not None:
        raise refuse(node, "has the number of keys of each sample as an input")
    if any(node.attributes.get_int(f"{side}_window_size", -1) >= 0 for side in ("left", "right")):
        raise refuse(node, "has a sliding window")
    y = node.outputs[0]
    heads = node.attributes.get_int("q_num_heads", 0)
    key_heads = node.attributes.get_int("kv_num_heads", 0)
    cap = node.attributes.get_float("softcap", 0.0)

    @cache
    def by_head() -> tuple[ir.Value, ...]:
        """Q, K, V, Y, dY by head, K and V with the past before them and repeated for every query that shares them."""
        q4, y4, dy4 = (_split_heads(op, x, heads) for x in (q, y, _given(dy)))
        k4, v4 = (
            _repeat_heads(op, _after_past(op, past, _split_heads(op, x, key_heads)), q4)
            for past, x in ((past_k, k), (past_v, v))
        )
        return q4, k4, v4, y4, dy4

    c = cache(lambda: _scale(op, node, by_head()[0]))
    allowed = cache(lambda: _allowed(op, node, by_head()[0], by_head()[1], past_k))
    added = m if m is not None and m.dtype != ir.DataType.BOOL else None

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
        if added is not None:
            s = op.Add(s, op.Max(added, _FORBIDDEN))
        return op.Softmax(s, axis=-1)

    @cache
    def dy_seen() -> ir.Value:
        """dY, and 0 in rows where everything is forbidden: there Y = 0."""
        dy4, free = by_head()[4], allowed()
        if added is not None:
            bias = added if free is None else op.Add(added, op.Log(free))
            return op.Mul(dy4, indicator(op, op.Greater(op.ReduceMax(bias, [-1], keepdims=1), -math.inf), dy4))
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

    @cache
    def dpresent_k() -> ir.Value:
        if dy is None:
            return _given(dkeys)
        whole = op.MatMul(transpose_last(op, ds()), op.Mul(by_head()[0], c()))
        return _add(op, _sum_heads(op, whole, k, key_heads), dkeys)

    @cache
    def dpresent_v() -> ir.Value:
        if dy is None:
            return _given(dvalues)
        return _add(op, _sum_heads(op, op.MatMul(transpose_last(op, p()), dy_seen()), v, key_heads), dvalues)

    def dm() -> ir.Value:
        assert m is not None
        return unbroadcast(op, dbiased(), m)

    keys = dy is not None or dkeys is not None
    values = dy is not None or dvalues is not None
    return (
        None if dy is None else dq,
        (lambda: _merge_heads(op, _new_part(op, dpresent_k(), past_k), k)) if keys else None,
        (lambda: _merge_heads(op, _new_part(op, dpresent_v(), past_v), v)) if values else None,
        None if dy is None else dm,
        (lambda: _past_part(op, dpresent_k(), past_k)) if keys else None,
        (lambda: _past_part(op, dpresent_v(), past_v)) if values else None,
    )


def _given(x: ir.Value | None) -> ir.Value:
    assert x is not None
    return x


def _add(op: OpBuilder, x: ir.Value, more: ir.Value | None) -> ir.Value:
    return x if more is None else op.Add(x, more)


# --- the cache: past positions, then new ones, along axis 2


def _after_past(op: OpBuilder, past: ir.Value | None, x: ir.Value) -> ir.Value:
    return x if past is None else op.Concat(past, x, axis=2)


def _past_part(op: OpBuilder, x: ir.Value, past: ir.Value | None) -> ir.Value:
    assert past is not None
    return annotate(op.Slice(x, [0], size_of(op, past, 2), [2]), past)


def _new_part(op: OpBuilder, x: ir.Value, past: ir.Value | None) -> ir.Value:
    return x if past is None else op.Slice(x, size_of(op, past, 2), [_END], [2])


# --- scores


def _scale(op: OpBuilder, node: ir.Node, q: ir.Value) -> ir.Value | float:
    """c, by default 1/√(head size)."""
    if "scale" in node.attributes:
        return node.attributes["scale"].as_float()
    size = dims(q)[-1]
    if isinstance(size, int):
        return size**-0.5
    return op.Reciprocal(op.Sqrt(op.Cast(size_of(op, q, -1), to=q.dtype)))


def _allowed(op: OpBuilder, node: ir.Node, q: ir.Value, k: ir.Value, past: ir.Value | None) -> ir.Value | None:
    """1 where a query may see a key, else 0; None where all is allowed. A causal query sees all of the past."""
    m = operand(node, 3)
    mask = indicator(op, m, q) if m is not None and m.dtype == ir.DataType.BOOL else None
    if not node.attributes.get_int("is_causal", 0):
        return mask
    square = op.Concat(size_of(op, q, 2), size_of(op, k, 2), axis=0)
    ahead = None if past is None else op.Squeeze(size_of(op, past, 2), [0])
    earlier = op.Trilu(filled(op, 1.0, square, q), ahead, upper=0)
    return earlier if mask is None else op.Mul(mask, earlier)


# --- heads


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
    """The adjoint of `_repeat_heads`, by head: the gradient of a key head is its group's sum."""
    key_heads = [heads] if rank(x) == 3 else size_of(op, x, 1)
    n, size = (size_of(op, dx, axis) for axis in (2, 3))
    apart = op.Reshape(dx, op.Concat([0], key_heads, [-1], n, size, axis=0))
    apart.shape = ir.Shape([None] * 5)
    return op.ReduceSum(apart, [2], keepdims=0)


# --- positions


@gradient_rule("RotaryEmbedding")
def rotary_embedding(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = C∘X + S∘J(X): pairs of X turned by the angles of their position, J turns them by a right angle.

    dX = pairs of dY turned back, by −S
    dC = Σ dY∘X, dS = Σ dY∘J(X), over a pair, and over the heads and all that stands at one position
    """
    x, cos, sin, *positions = operands(node)
    heads, interleaved = node.attributes.get_int("num_heads", 0), node.attributes.get_int("interleaved", 0)
    size = node.attributes.get_int("rotary_embedding_dim", 0)

    def turned(v: ir.Value, c: ir.Value, s: ir.Value) -> ir.Value:
        return annotate(op.RotaryEmbedding(v, c, s, *positions, **node.attributes), x)

    def table(products: ir.Value, like: ir.Value) -> ir.Value:
        """The sums for a table, `[batch, positions, pairs]` or `[all positions, pairs]`."""
        apart = op.Transpose(_split_heads(op, products, heads), perm=[0, 2, 1, 3])
        if size:
            apart = op.Slice(apart, [0], [size], [3])
        pairs, axes = ([0, 0, 0, -1, 2], [2, 4]) if interleaved else ([0, 0, 0, 2, -1], [2, 3])
        rows = op.ReduceSum(op.Reshape(apart, pairs), axes, keepdims=0)
        if positions:
            rows = op.ScatterND(zeros_like(op, like), op.Unsqueeze(positions[0], [-1]), rows, reduction="add")
        return annotate(rows, like)

    def dsin() -> ir.Value:
        one = annotate(filled(op, 1.0, shape_of(op, sin), x), sin)
        return table(op.Mul(dy, turned(x, zeros_like(op, cos), one)), sin)

    return lambda: turned(dy, cos, op.Neg(sin)), lambda: table(op.Mul(dy, x), cos), dsin
