"""Causal attention in blocks of queries: block i reads the keys up to its own end, and nothing is computed beyond.

What is left out is half of the square less half of a block's share (Dao et al. 2022 skip the same blocks). Heads that
share keys are the rows of one product with these: nothing is repeated for them, and their gradients are one sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.registry import composite_node
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import Dim, annotate, dims, shaped, transpose_last
from edgelora_tools.lowering import DOMAIN

OP_TYPE = "CausalAttend"


def causal_attend(
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    scale: ir.Value | None,
    sizes: ir.Value,
    blocks: Sequence[tuple[ir.Value, ...]],
    safe: bool,
) -> ir.Node:
    """Y `[batch, heads, length, size]` of Q `[batch, heads, length, width]`, K and V `[batch, fewer, length, ...]`.

    `sizes` int64 `[blocks]` are the blocks' queries. Each block has its end, int64 `[1]`, what is added to its scores
    `[batch or 1, 1, queries, keys]`, and the shape of its scores by heads of queries, and by those of keys.
    """
    count = len(blocks)
    lists = [x for each in zip(*blocks, strict=True) for x in each]
    node = composite_node(
        OP_TYPE, [q, k, v, sizes, *lists, *([] if scale is None else [scale])],
        {"blocks": count, "safe": int(safe)}, outputs=4 * count - 1,
    )  # fmt: skip
    parts = _Parts(node)
    batch, heads, _, width = dims(q)
    fewer, size = dims(k)[1], dims(v)[3]
    for i in range(count):
        rows, keys = _rows(queries(i), heads, fewer), keys_of(i)
        shaped(parts.p[i], [batch, fewer, rows, keys], q)
        shaped(parts.q[i], [batch, fewer, rows, width], q)
        if i < count - 1:
            shaped(parts.k[i], [batch, fewer, keys, width], q)
            shaped(parts.v[i], [batch, fewer, keys, size], q)
    return node


def queries(block: int) -> str:
    """The number of a block's queries, as a dimension."""
    return f"queries.{block}"


def keys_of(block: int) -> str:
    """The number of the keys that it reads, as a dimension: its own tokens and those before them."""
    return "+".join(queries(i) for i in range(block + 1))


class _Parts:
    """The inputs and outputs of a node, by name; those of blocks as lists."""

    def __init__(self, node: ir.Node) -> None:
        self.count = count = node.attributes.get_int("blocks", 1)
        self.safe = bool(node.attributes.get_int("safe", 1))
        whole_q, whole_k, whole_v, self.sizes, *rest = operands(node)
        self.whole = whole_q, whole_k, whole_v
        self.ends, self.masks, self.by_head, self.by_key = (rest[i * count : (i + 1) * count] for i in range(4))
        self.scale = rest[4 * count] if len(rest) > 4 * count else None
        self.y, *made = node.outputs
        self.p, self.q = made[:count], made[count : 2 * count]
        self.k = [*made[2 * count : 3 * count - 1], whole_k]
        self.v = [*made[3 * count - 1 :], whole_v]
        self.heads, self.fewer = dims(whole_q)[1], dims(whole_k)[1]


@gradient_rule(OP_TYPE, domain=DOMAIN)
def gradient(op: OpBuilder, node: ir.Node, dy: ir.Value, *_: None) -> Thunks:
    """Sᵢ = c·Qᵢ·Kᵢᵀ + Mᵢ, Pᵢ = softmax(Sᵢ), Yᵢ = Pᵢ·Vᵢ; Kᵢ and Vᵢ begin as K and V do, up to the block's end.

    dSᵢ = Pᵢ∘(dYᵢ·Vᵢᵀ − Σ dYᵢ∘Yᵢ), as that of Attend
    dQᵢ = c·dSᵢ·Kᵢ
    dK = Σ c·dSᵢᵀ·Qᵢ and dV = Σ Pᵢᵀ·dYᵢ, each of the keys that the block reads
    """
    x = _Parts(node)
    q, k, v = x.whole

    @cache
    def dys() -> list[ir.Value]:
        return [_grouped(op, d, x.fewer) for d in _split(op, dy, x.sizes, x.count)]

    @cache
    def ds() -> list[ir.Value]:
        along = op.ReduceSum(op.Mul(dy, x.y), [-1], keepdims=1)
        along.shape = ir.Shape([*dims(q)[:3], 1])
        parts = zip(x.p, dys(), x.v, _split(op, along, x.sizes, x.count), strict=True)
        return [
            annotate(op.Mul(p, op.Sub(op.MatMul(d, transpose_last(op, v_i)), _grouped(op, a, x.fewer))), p)
            for p, d, v_i, a in parts
        ]

    def dq() -> ir.Value:
        parts = [_scaled(op, op.MatMul(d, k_i), x.scale) for d, k_i in zip(ds(), x.k, strict=True)]
        return annotate(op.Concat(*(_by_head(op, part, q, x.fewer) for part in parts), axis=2), q)

    def dk() -> ir.Value:
        parts = [_scaled(op, op.MatMul(transpose_last(op, d), q_i), x.scale) for d, q_i in zip(ds(), x.q, strict=True)]
        return annotate(_sum_of_beginnings(op, parts, x), k)

    def dv() -> ir.Value:
        parts = [op.MatMul(transpose_last(op, p), d) for p, d in zip(x.p, dys(), strict=True)]
        return annotate(_sum_of_beginnings(op, parts, x), v)

    return dq, dk, dv


class CausalAttend:
    """Products, Softmax and Concat, in standard ONNX."""

    op_type = OP_TYPE

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        x = _Parts(node)
        q, k, v = x.whole
        qs = [_grouped(op, part, x.fewer) for part in _split(op, q, x.sizes, x.count)]
        ks, vs = ([*(op.Slice(of, [0], end, [2]) for end in x.ends[:-1]), of] for of in (k, v))
        ps, ys = [], []
        for i in range(x.count):
            s = _scaled(op, op.MatMul(qs[i], transpose_last(op, shaped(ks[i], dims(x.k[i]), k))), x.scale)
            square = [*dims(q)[:2], queries(i), keys_of(i)]
            s = s if x.heads == x.fewer else op.Reshape(s, x.by_head[i], allowzero=1)
            p = shaped(op.Softmax(shaped(op.Add(s, x.masks[i]), square, q), axis=-1), square, q)
            if x.safe:
                p = op.Where(op.IsNaN(p), 0.0, p)
            ps.append(p if x.heads == x.fewer else op.Reshape(p, x.by_key[i], allowzero=1))
            y = shaped(op.MatMul(ps[i], vs[i]), [*dims(x.p[i])[:3], dims(v)[3]], v)
            ys.append(_by_head(op, y, x.y, x.fewer))
        return [op.Concat(*ys, axis=2), *ps, *qs, *ks[:-1], *vs[:-1]]


def _split(op: OpBuilder, x: ir.Value, sizes: ir.Value, count: int) -> list[ir.Value]:
    """The blocks of X `[batch, heads, length, width]`."""
    batch, heads, _, width = dims(x)
    parts = op.Split(x, sizes, axis=2, _outputs=count)
    parts = [parts] if isinstance(parts, ir.Value) else list(parts)
    return [shaped(part, [batch, heads, queries(i), width], x) for i, part in enumerate(parts)]


def _rows(each: Dim, heads: Dim, fewer: Dim) -> Dim:
    """How many rows the queries of all heads that share keys are."""
    return each if heads == fewer else f"{int(str(heads)) // int(str(fewer))}*{each}"


def _grouped(op: OpBuilder, x: ir.Value, fewer: Dim) -> ir.Value:
    """X of a block, with the queries of all heads that share keys one below the other: a view."""
    batch, heads, each, width = dims(x)
    if heads == fewer:
        return x
    made = op.Reshape(x, [0, int(str(fewer)), -1, int(str(width))])
    return shaped(made, [batch, fewer, _rows(each, heads, fewer), width], x)


def _by_head(op: OpBuilder, x: ir.Value, like: ir.Value, fewer: Dim) -> ir.Value:
    """Back from `_grouped`."""
    _, heads, _, width = dims(like)
    return x if heads == fewer else op.Reshape(x, [0, int(str(heads)), -1, int(str(width))])


def _scaled(op: OpBuilder, product: ir.Value, scale: ir.Value | None) -> ir.Value:
    """A runtime gives the number to the product."""
    return product if scale is None else annotate(op.Mul(product, scale), product)


def _sum_of_beginnings(op: OpBuilder, parts: Sequence[ir.Value], x: _Parts) -> ir.Value:
    """The sum of matrices each of which has the rows of those before it, and some more."""
    *shorter, total = parts
    rests: list[ir.Value] = []
    for i, part in reversed(list(enumerate(shorter))):
        begun, rest = op.Split(total, _two(op, x, i), axis=2, _outputs=2)
        total = op.Add(begun, part)
        rests.insert(0, rest)
    return op.Concat(total, *rests, axis=2) if rests else total


def _two(op: OpBuilder, x: _Parts, i: int) -> ir.Value:
    """How many keys block i reads, and how many more the next one does."""
    return op.Concat(x.ends[i], op.Sub(x.ends[i + 1], x.ends[i]), axis=0)


LOWERED = {OP_TYPE: CausalAttend()}
