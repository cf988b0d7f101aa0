"""Products: MatMul, Gemm, Einsum. Convolutions have a file of their own."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands, refuse
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import (
    dims,
    expand_like,
    flatten_rows,
    rank,
    reshape_like,
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
    if rank(b) == 2 and rank(a) >= 2 and all(isinstance(d, int) for d in dims(b)):
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
        return reshape_like(op, unbroadcast(op, da2, a2), a) if rank(a) == 1 else unbroadcast(op, da2, a)

    def db() -> ir.Value:
        db2 = op.MatMul(transpose_last(op, a2), dy2)
        return reshape_like(op, unbroadcast(op, db2, b2), b) if rank(b) == 1 else unbroadcast(op, db2, b)

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

    dA[a] = Σ dY[out]·B[b]·…, the same along a letter that A alone has
    """
    xs = operands(node)
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow:  # the letters that occur once, in alphabetical order
        out = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    if "." in equation or any(len(set(term)) < len(term) for term in (*terms, out)):
        raise refuse(node, f"has the equation {equation!r}")

    def dx(i: int) -> ir.Value:
        others = [term for j, term in enumerate(terms) if j != i]
        shared = set("".join((out, *others)))
        mine = "".join(c for c in terms[i] if c in shared)
        values = [x for j, x in enumerate(xs) if j != i]
        result = op.Einsum(dy, *values, equation=f"{','.join((out, *others))}->{mine}")
        alone = [axis for axis, c in enumerate(terms[i]) if c not in shared]
        return expand_like(op, op.Unsqueeze(result, alone), xs[i]) if alone else result

    return [partial(dx, i) for i in range(len(xs))]
