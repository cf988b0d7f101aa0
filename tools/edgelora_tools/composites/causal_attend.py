"""Causal attention in blocks of queries: block i reads the keys up to its own end, and nothing is computed beyond.

What is left out is half of the square less half of a block's share (Dao et al. 2022 skip the same blocks). Heads that
share keys are the rows of one product with these: nothing is repeated for them, and their gradients are one sum. Rows
are halved where two threads would share products unevenly, each of which ONNX Runtime gives to one.
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
    `[batch or 1, 1, queries, keys]`, the shape of its scores by heads of queries, and by those of keys; and in halves
    the shapes of its rows by those of keys, one for each of `halves_widths`.
    """
    count = len(blocks)
    lists = [x for each in zip(*blocks, strict=True) for x in each]
    node = composite_node(
        OP_TYPE, [q, k, v, sizes, *lists, *([] if scale is None else [scale])],
        {"blocks": count, "safe": int(safe)}, outputs=4 * count + (1 if in_halves(dims(q)[1], dims(k)[1]) else -1),
    )  # fmt: skip
    x = _Parts(node)
    width, size = dims(q)[3], dims(v)[3]
    for i in range(count):
        shaped(x.p[i], [*x.lead, x.rows(i), keys_of(i)], q)
        shaped(x.q[i], [*x.lead, x.rows(i), width], q)
        if x.halved or i < count - 1:
            keys = keys_of(i) if i < count - 1 else dims(k)[2]
            shaped(x.k[i], [*x.of_keys, keys, width], q)
            shaped(x.v[i], [*x.of_keys, keys, size], q)
    return node


HALVES = "halves"
"""The parts of a product's rows, 1 or 2, as a dimension."""


def in_halves(heads: Dim, fewer: Dim) -> bool:
    """Whether the rows of products are halved: two threads would share an odd number of heads of keys unevenly.

    A product alone both work on, and where each head has keys of its own there are many.
    """
    return heads != fewer and int(str(fewer)) % 2 == 1 and int(str(fewer)) > 1


def halves_widths(q: ir.Value, k: ir.Value, v: ir.Value) -> list[int]:
    """The widths of what is cut into halves: queries, what attention gives, and its sums."""
    return sorted({int(str(dims(x)[3])) for x in (q, v)} | {1}) if in_halves(dims(q)[1], dims(k)[1]) else []


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
        self.batch, self.heads = dims(whole_q)[:2]
        self.fewer = dims(whole_k)[1]
        self.halved = in_halves(self.heads, self.fewer)
        rest = rest[4 * count :]
        widths = halves_widths(whole_q, whole_k, whole_v)
        self.halves_of = {width: rest[i * count : (i + 1) * count] for i, width in enumerate(widths)}
        self.scale = rest[-1] if len(rest) > len(widths) * count else None
        self.y, *made = node.outputs
        self.p, self.q = made[:count], made[count : 2 * count]
        shorter = (len(made) - 2 * count) // 2
        self.k, self.v = made[2 * count :][:shorter], made[2 * count :][shorter:]
        if not self.halved:
            self.k, self.v = [*self.k, whole_k], [*self.v, whole_v]
        self.of_keys = [self.batch, self.fewer, *([1] if self.halved else [])]
        self.lead = [self.batch, self.fewer, *([HALVES] if self.halved else [])]

    def rows(self, block: int) -> Dim:
        """How many rows each product of a block has."""
        if self.heads == self.fewer:
            return queries(block)
        many = int(str(self.heads)) // int(str(self.fewer))
        return f"rows.{many}.{block}" if self.halved else f"{many}*{queries(block)}"


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
        return [_grouped(op, d, x, i) for i, d in enumerate(_split(op, dy, x))]

    @cache
    def ds() -> list[ir.Value]:
        along = op.ReduceSum(op.Mul(dy, x.y), [-1], keepdims=1)
        along.shape = ir.Shape([*dims(q)[:3], 1])
        parts = enumerate(zip(x.p, dys(), x.v, _split(op, along, x), strict=True))
        return [
            annotate(op.Mul(p, op.Sub(op.MatMul(d, transpose_last(op, v_i)), _grouped(op, a, x, i))), p)
            for i, (p, d, v_i, a) in parts
        ]

    def dq() -> ir.Value:
        parts = [_scaled(op, op.MatMul(d, k_i), x.scale) for d, k_i in zip(ds(), x.k, strict=True)]
        return annotate(op.Concat(*(_by_head(op, part, q, x) for part in parts), axis=2), q)

    def dk() -> ir.Value:
        parts = [_of_keys(op, d, q_i, x, x.scale) for d, q_i in zip(ds(), x.q, strict=True)]
        return annotate(_sum_of_beginnings(op, parts, x), k)

    def dv() -> ir.Value:
        parts = [_of_keys(op, p, d, x) for p, d in zip(x.p, dys(), strict=True)]
        return annotate(_sum_of_beginnings(op, parts, x), v)

    return dq, dk, dv


class CausalAttend:
    """Products, Softmax and Concat, in standard ONNX."""

    op_type = OP_TYPE

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        x = _Parts(node)
        q, k, v = x.whole
        qs = [_grouped(op, part, x, i) for i, part in enumerate(_split(op, q, x))]
        ks, vs = (_beginnings(op, of, x) for of in (k, v))
        ps, ys = [], []
        for i in range(x.count):
            s = _scaled(op, op.MatMul(qs[i], transpose_last(op, ks[i])), x.scale)
            square = [*dims(q)[:2], queries(i), keys_of(i)]
            s = s if x.heads == x.fewer else op.Reshape(s, x.by_head[i], allowzero=1)
            p = shaped(op.Softmax(shaped(op.Add(s, x.masks[i]), square, q), axis=-1), square, q)
            if x.safe:
                p = op.Where(op.IsNaN(p), 0.0, p)
            ps.append(p if x.heads == x.fewer else op.Reshape(p, x.by_key[i], allowzero=1))
            y = shaped(op.MatMul(ps[i], vs[i]), [*dims(x.p[i])[:-1], dims(v)[3]], v)
            ys.append(_by_head(op, y, x.y, x))
        cut = x.count if x.halved else x.count - 1
        return [op.Concat(*ys, axis=2), *ps, *qs, *ks[:cut], *vs[:cut]]


def _split(op: OpBuilder, x: ir.Value, of: _Parts) -> list[ir.Value]:
    """The blocks of X `[batch, heads, length, width]`."""
    batch, heads, _, width = dims(x)
    parts = op.Split(x, of.sizes, axis=2, _outputs=of.count)
    parts = [parts] if isinstance(parts, ir.Value) else list(parts)
    return [shaped(part, [batch, heads, queries(i), width], x) for i, part in enumerate(parts)]


def _grouped(op: OpBuilder, x: ir.Value, of: _Parts, block: int) -> ir.Value:
    """X of a block, with the queries of all heads that share keys one below the other, or their halves: a view."""
    if of.heads == of.fewer:
        return x
    width = int(str(dims(x)[3]))
    if of.halved:
        made = op.Reshape(x, of.halves_of[width][block], allowzero=1)
    else:
        made = op.Reshape(x, [0, int(str(of.fewer)), -1, width])
    return shaped(made, [*of.lead, of.rows(block), width], x)


def _beginnings(op: OpBuilder, x: ir.Value, of: _Parts) -> list[ir.Value]:
    """Of keys or values what each block reads."""
    width = dims(x)[3]
    if of.halved:
        x = shaped(op.Reshape(x, [0, int(str(of.fewer)), 1, -1, int(str(width))]), [*of.of_keys, dims(x)[2], width], x)
    shorter = [op.Slice(x, [0], end, [len(of.lead)]) for end in of.ends[:-1]]
    return [*(shaped(part, [*of.of_keys, keys_of(i), width], x) for i, part in enumerate(shorter)), x]


def _of_keys(op: OpBuilder, a: ir.Value, b: ir.Value, of: _Parts, scale: ir.Value | None = None) -> ir.Value:
    """AᵀB, scaled: of halves the sum."""
    sizes = [*dims(a)[:-2], dims(a)[-1], dims(b)[-1]]
    made = _scaled(op, shaped(op.MatMul(transpose_last(op, a), b), sizes, b), scale)
    return shaped(op.ReduceSum(made, [2], keepdims=0), [*sizes[:2], *sizes[3:]], b) if of.halved else made


def _by_head(op: OpBuilder, x: ir.Value, like: ir.Value, of: _Parts) -> ir.Value:
    """Back from the blocks of `_split`."""
    _, heads, _, width = dims(like)
    return x if of.heads == of.fewer else op.Reshape(x, [0, int(str(heads)), -1, int(str(width))])


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
