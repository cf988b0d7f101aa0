"""Products and determinants: MatMul, Gemm, Einsum, Det. Convolutions have a file of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from string import ascii_letters

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import (
    Dim,
    annotate,
    dims,
    flatten_rows,
    indicator,
    rank,
    reshape_like,
    shape_of,
    size_of,
    transpose_last,
    unbroadcast,
)


@gradient_rule("MatMul")
def matmul(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = A·B.

    dA = dY·Bᵀ
    dB = Aᵀ·dY

    With a matrix B, as in every linear layer, the rows of A are flattened and the transpose is Gemm's
    flag: no second, transposed copy of a frozen weight comes to exist.
    """
    a, b = operands(node)
    if rank(b) == 2 and rank(a) >= 2:
        rows = flatten_rows(op, dy)
        return (
            lambda: reshape_like(op, op.Gemm(rows, b, transB=1), a),
            lambda: op.Gemm(flatten_rows(op, a), rows, transA=1),
        )
    if rank(a) == 1 or rank(b) == 1:
        return _matmul_vector(op, a, b, dy)
    return (
        lambda: unbroadcast(op, op.MatMul(dy, transpose_last(op, b)), a),
        lambda: unbroadcast(op, op.MatMul(transpose_last(op, a), dy), b),
    )


def _matmul_vector(op: OpBuilder, a: ir.Value, b: ir.Value, dy: ir.Value) -> Thunks:
    """MatMul with a vector: a row `[1, k]` on the left or a column `[k, 1]` on the right, then dropped."""

    def row(x: ir.Value) -> ir.Value:
        return op.Unsqueeze(x, [0])

    def column(x: ir.Value) -> ir.Value:
        return op.Unsqueeze(x, [-1])

    a2, b2 = (row(a) if rank(a) == 1 else a), (column(b) if rank(b) == 1 else b)
    if rank(a) == 1 and rank(b) == 1:
        dy2 = op.Reshape(dy, [1, 1])
    elif rank(a) == 1:
        dy2 = op.Unsqueeze(dy, [-2])
    else:
        dy2 = column(dy)

    def da() -> ir.Value:
        da2 = op.MatMul(dy2, transpose_last(op, b2))
        return reshape_like(op, unbroadcast(op, da2, a2), a) if rank(a) == 1 else annotate(da2, a)

    def db() -> ir.Value:
        db2 = op.MatMul(transpose_last(op, a2), dy2)
        return reshape_like(op, unbroadcast(op, db2, b2), b) if rank(b) == 1 else annotate(db2, b)

    return da, db


@gradient_rule("Gemm")
def gemm(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = α·A'·B' + β·C, A' = Aᵀ if transA, B' = Bᵀ if transB (operator specification, Gemm).

    dA' = α·dY·B'ᵀ
    dB' = α·A'ᵀ·dY
    dC  = β·dY, summed to the shape of C
    """
    a, b, *c = operands(node)
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    ta, tb = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)

    def da() -> ir.Value:
        if ta:  # dA = (α·dY·B'ᵀ)ᵀ = α·B'·dYᵀ
            return op.Gemm(b, dy, alpha=alpha, transA=tb, transB=1)
        return op.Gemm(dy, b, alpha=alpha, transB=1 - tb)

    def db() -> ir.Value:
        if tb:  # dB = (α·A'ᵀ·dY)ᵀ = α·dYᵀ·A'
            return op.Gemm(dy, a, alpha=alpha, transA=1, transB=ta)
        return op.Gemm(a, dy, alpha=alpha, transA=1 - ta)

    def dc() -> ir.Value:
        return unbroadcast(op, dy if beta == 1.0 else op.Mul(dy, beta), *c)

    return (da, db, dc)


@gradient_rule("Einsum")
def einsum(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y[out] = Σ A[a]·B[b]·…, the sum over the letters that out lacks.

    dA[a] = Σ dY[out]·B[b]·…, the same along a letter that A alone has, 0 off the diagonal of one that it repeats

    An ellipsis stands for letters of its own. A has been broadcast along a letter where its size is 1, and is
    summed over it.
    """
    xs = operands(node)
    terms, out = _letters(node.attributes["equation"].as_string(), [rank(x) for x in xs])

    def dx(i: int) -> ir.Value:
        x, term, others = xs[i], terms[i], [t for j, t in enumerate(terms) if j != i]
        sizes = dict(zip(term, dims(x), strict=True))
        shared = {c for c in "".join((out, *others)) if sizes.get(c) != 1}
        mine = "".join(dict.fromkeys(c for c in term if c in shared))
        factors = [dy, *(x for j, x in enumerate(xs) if j != i)]
        result = op.Einsum(*factors, equation=f"{','.join((out, *others))}->{mine}")
        if missing := [axis for axis, c in enumerate(term) if c not in shared or c in term[:axis]]:
            result = op.Unsqueeze(result, missing)
        for axis, c in enumerate(term):
            if c in term[:axis]:
                result = op.Mul(result, _diagonal(op, x, term.index(c), axis))
        if any(c not in shared and sizes[c] != 1 and term.count(c) == 1 for c in term):
            result = op.Expand(result, shape_of(op, x))
        result.shape = ir.Shape([None] * rank(x)) if result.shape is None else result.shape
        return unbroadcast(op, result, x) if _may_broadcast(mine, sizes, terms, xs) else annotate(result, x)

    return [partial(dx, i) for i in range(len(xs))]


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, with those that an ellipsis stands for.

    Ellipses are aligned at the last of their letters. Without an arrow the result has the ellipsis and then, in
    alphabetical order, the letters that occur once (operator specification, Einsum).
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        once = sorted(c for c in set(left) - {",", "."} if left.count(c) == 1)
        out = "".join(["..." if "..." in left else "", *once])
    lengths = [r - len(term) + 3 if "..." in term else 0 for term, r in zip(terms, ranks, strict=True)]
    hidden = "".join(c for c in ascii_letters if c not in equation)[: max(lengths)]
    terms = [term.replace("...", hidden[len(hidden) - n :]) for term, n in zip(terms, lengths, strict=True)]
    return terms, out.replace("...", hidden)


def _may_broadcast(mine: str, sizes: dict[str, Dim], terms: Sequence[str], xs: Sequence[ir.Value]) -> bool:
    """Whether a letter of `mine` may be 1 in its operand, whose `sizes` are given, and more in another."""
    seen = {
        c: {d for term, x in zip(terms, xs, strict=True) for t, d in zip(term, dims(x), strict=True) if t == c}
        for c in mine
    }
    return any(not isinstance(sizes[c], int) and (len(seen[c]) > 1 or None in seen[c]) for c in mine)


def _diagonal(op: OpBuilder, x: ir.Value, first: int, second: int) -> ir.Value:
    """1 where the positions along two axes of `x` are equal, else 0; it broadcasts to the shape of `x`."""

    def positions(axis: int) -> ir.Value:
        size = op.Squeeze(size_of(op, x, axis), [0])
        along = op.Range(op.Constant(value_int=0), size, op.Constant(value_int=1))
        return op.Unsqueeze(along, [a for a in range(rank(x)) if a != axis])

    return indicator(op, op.Equal(positions(first), positions(second)), x)


@gradient_rule("Det")
def det(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """y = |X| of a square matrix [..., n, n]; dX = dy·K, K the cofactors: Kᵢⱼ = (−1)^(i+j)·|X without row i, column j|.

    No inverse is needed, so X may be singular; n² determinants suit the small matrices that Det is used for.
    """
    (x,) = operands(node)

    def dx() -> ir.Value:
        grown = op.Unsqueeze(dy, [-2, -1])
        if 1 in dims(x)[-2:]:
            return annotate(grown, x)
        n = op.Squeeze(size_of(op, x, -1), [0])
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        along = op.Range(zero, n, one)
        fewer = op.Range(zero, op.Sub(n, 1), one)
        passed = op.Cast(op.GreaterOrEqual(fewer, op.Unsqueeze(along, [1])), to=ir.DataType.INT64)
        others = op.Add(fewer, passed)  # row i: all numbers below n but i
        minors = op.Gather(op.Gather(x, others, axis=-1), others, axis=rank(x) - 2)  # [..., n, n − 1, n, n − 1]
        order = [*range(rank(x) - 2), *(rank(x) - 2 + a for a in (0, 2, 1, 3))]
        parity = op.Mod(op.Add(op.Unsqueeze(along, [1]), along), 2)
        sign = op.Sub(1.0, op.Mul(indicator(op, parity, x), 2.0))
        return annotate(op.Mul(op.Mul(grown, sign), op.Det(op.Transpose(minors, perm=order))), x)

    return (dx,)
