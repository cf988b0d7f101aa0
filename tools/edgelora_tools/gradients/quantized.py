"""Quantized operators: codes stand for real numbers, and the gradient passes straight through the rounding.

The cotangent of a tensor of codes q is the gradient with respect to q as real numbers. Rounding is taken for
the identity and saturation for what it is (the straight-through estimator: Bengio, Léonard & Courville 2013,
arXiv:1308.3432; for integer inference Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

from functools import cache

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.convolution import conv
from edgelora_tools.gradients.nodes import operand, operands, refuse
from edgelora_tools.gradients.registry import GradientRule, Thunk, Thunks, gradient_rule
from edgelora_tools.gradients.shapes import (
    axis_of,
    dims,
    flatten_rows,
    indicator,
    rank,
    reshape_like,
    size_of,
    transpose_last,
    unbroadcast,
)

_FLOAT8 = {
    ir.DataType.FLOAT8E4M3FN: 448.0,
    ir.DataType.FLOAT8E4M3FNUZ: 240.0,
    ir.DataType.FLOAT8E5M2: 57344.0,
    ir.DataType.FLOAT8E5M2FNUZ: 57344.0,
}


@gradient_rule("QuantizeLinear", quantizes=True)
def quantize_linear(op: OpBuilder, node: ir.Node, dq: ir.Value) -> Thunks:
    """Q = saturate(round(X/s) + z), with a scale per tensor, per slice along an axis, or per block.

    P  = dQ/s∘[X/s + z within half a code of what the type holds]
    dX = P
    ds = −Σ P∘X/s, where s is computed
    """
    x, s = operands(node)[:2]
    scale = cache(lambda: _spread(op, node, s, x))
    z = operand(node, 2)
    low, high = _limits(node)

    def dx() -> ir.Value:
        def at(code: float) -> ir.Value:
            shifted = None if z is None else op.Sub(code, _spread(op, node, op.CastLike(z, s), x))
            return op.Mul(scale(), code if shifted is None else shifted)

        above, below = op.GreaterOrEqual(x, at(low - 0.5)), op.LessOrEqual(x, at(high + 0.5))
        return op.Mul(op.Div(dq, scale()), indicator(op, op.And(above, below), dq))

    def ds() -> ir.Value:
        _refuse_blocks(node)
        return reshape_like(op, unbroadcast(op, op.Neg(op.Div(op.Mul(dx(), x), scale())), scale()), s)

    return dx, ds


@gradient_rule("DequantizeLinear")
def dequantize_linear(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = s∘(Q − z), with a scale per tensor, per slice along an axis, or per block.

    dQ = s∘dY
    ds = Σ dY∘(Q − z) = (Σ dY∘Y)/s, where s is computed
    """
    q, s = operands(node)[:2]
    (y,) = node.outputs
    scale = cache(lambda: _spread(op, node, s, q))

    def ds() -> ir.Value:
        _refuse_blocks(node)
        return reshape_like(op, op.Div(unbroadcast(op, op.Mul(dy, y), scale()), scale()), s)

    def dq() -> ir.Value:
        made = op.Mul(dy, scale())
        made.shape, made.type = q.shape, dy.type
        return made

    return dq, ds


@gradient_rule("DynamicQuantizeLinear", quantizes=True)
def dynamic_quantize_linear(
    op: OpBuilder, node: ir.Node, dq: ir.Value | None, ds: ir.Value | None = None, dz: None = None
) -> Thunks:
    """Q = round(X/s) + z, with s and z from the least and the greatest of X and 0; dX = dQ/s.

    s and z are taken for constants. For s∘(Q − z) that is exact: but for the rounding it is X, whatever s
    and z are, so that what they contribute cancels. Nothing saturates.
    """
    _, s, _ = node.outputs
    return (None if dq is None else lambda: op.Div(dq, s),)


@gradient_rule("MatMulInteger")
def matmul_integer(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = (A − za)·(B − zb).

    dA = dY·(B − zb)ᵀ
    dB = (A − za)ᵀ·dY
    """
    a, b, za, zb = _operands(node)
    if rank(a) == 1 or rank(b) == 1:
        raise refuse(node, "multiplies a vector")

    def da() -> ir.Value:
        weight = _centred(op, b, zb, -1, dy)
        if rank(b) == 2:
            return reshape_like(op, op.Gemm(flatten_rows(op, dy), weight, transB=1), a)
        return unbroadcast(op, op.MatMul(dy, transpose_last(op, weight)), a)

    def db() -> ir.Value:
        left = _centred(op, a, za, -2, dy)
        if rank(b) == 2:
            return op.Gemm(flatten_rows(op, left), flatten_rows(op, dy), transA=1)
        return unbroadcast(op, op.MatMul(transpose_last(op, left), dy), b)

    return da, db


@gradient_rule("ConvInteger")
def conv_integer(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = (X − zx) ⋆ (W − zw); dX and dW as Conv has them, of these differences."""
    x, w, zx, zw = _operands(node)
    return (
        lambda: _as_rule(conv, "Conv", op, node, [x, _centred(op, w, zw, 0, dy)], 0, dy),
        lambda: _as_rule(conv, "Conv", op, node, [_centred(op, x, zx, 1, dy), w], 1, dy),
    )


def _as_rule(
    rule: GradientRule, op_type: str, op: OpBuilder, node: ir.Node, inputs: list[ir.Value], position: int, dy: ir.Value
) -> ir.Value:
    """The gradient of one input, by the rule of the operator that computes the same on real numbers."""
    stand_in = ir.Node("", op_type, inputs, list(node.attributes.values()), num_outputs=1, name=node.name)
    thunk: Thunk | None = rule(op, stand_in, dy)[position]
    assert thunk is not None
    dx = thunk()
    for i in range(len(inputs)):  # so that nothing but the graph's own nodes uses its values
        stand_in.replace_input_with(i, None)
    return dx


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None, ir.Value | None]:
    """The two factors of an integer product and their zero points."""
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    return a, b, operand(node, 2), operand(node, 3)


def _centred(op: OpBuilder, x: ir.Value, z: ir.Value | None, axis: int, like: ir.Value) -> ir.Value:
    """X − z as real numbers in the type of `like`; z is one number, or has one for each slice of `axis`."""
    one = op.CastLike(op.Constant(value_float=1.0), like)
    if z is None or rank(z) == 0:
        made = op.DequantizeLinear(x, one, *([] if z is None else [z]))
    else:
        shape = [1] * rank(x) if rank(z) < 2 else None
        if shape is not None:
            shape[axis] = -1
        made = op.Sub(op.CastLike(x, like), op.CastLike(z if shape is None else op.Reshape(z, shape), like))
    made.shape, made.type = x.shape, like.type
    return made


def _spread(op: OpBuilder, node: ir.Node, s: ir.Value, x: ir.Value) -> ir.Value:
    """A node's scales or zero points in a shape that broadcasts against `x`."""
    if rank(s) == 0 or rank(x) == 0:
        return s
    axis = axis_of(node.attributes.get_int("axis", 1), x)
    block = node.attributes.get_int("block_size", 0)
    if block:
        size = dims(x)[axis]
        if isinstance(size, int):
            blocks = op.Constant(value_ints=[i // block for i in range(size)])
        else:
            positions = op.Range(
                op.Constant(value_int=0), op.Squeeze(size_of(op, x, axis), [0]), op.Constant(value_int=1)
            )
            blocks = op.Div(positions, block)
        wide = op.Gather(s, blocks, axis=axis)
        wide.shape = x.shape
        return wide
    if dims(s) == (1,):
        return op.Squeeze(s, [0])
    shape = [1] * rank(x)
    shape[axis] = -1
    made = op.Reshape(s, shape)
    made.shape = ir.Shape([dims(s)[0] if i == axis else 1 for i in range(rank(x))])
    return made


def _refuse_blocks(node: ir.Node) -> None:
    if node.attributes.get_int("block_size", 0):
        raise refuse(node, "computes the scales of blocks")


def _limits(node: ir.Node) -> tuple[float, float]:
    """The least and the greatest code of a QuantizeLinear."""
    z = operand(node, 2)
    dtype = z.dtype if z is not None else ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
    if dtype is not None and dtype in _FLOAT8:
        return -_FLOAT8[dtype], _FLOAT8[dtype]
    if dtype is None or not dtype.is_integer():
        raise refuse(node, f"makes codes of type {dtype}")
    bits = dtype.bitwidth
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype.is_signed() else (0, 2**bits - 1)
