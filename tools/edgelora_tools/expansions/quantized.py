"""Quantized operators as what they compute between DequantizeLinear and QuantizeLinear.

ONNX Runtime fuses such groups into its integer kernels again when it loads a graph. In between stand the real
numbers that adapters join; an output differs from the integer kernel's by one code at most, where a number lies
in the middle of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.expansions.registry import MICROSOFT, called, expansion, uncovered
from edgelora_tools.gradients.nodes import operand, operands
from edgelora_tools.gradients.shapes import rank

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
Codes = tuple[ir.Value, ir.Value, ir.Value | None]


def _codes(node: ir.Node, at: int) -> Codes:
    """Codes, scale and zero point, which stand one after another among a node's inputs."""
    q, s = node.inputs[at : at + 2]
    assert q is not None and s is not None
    return q, s, operand(node, at + 2)


def _real(op: OpBuilder, codes: Codes, axis: int = 0) -> ir.Value:
    """The numbers that codes stand for. Scales of one number are made scalars."""
    q, s, z = codes
    made = op.DequantizeLinear(q, _scalar(op, s), *([] if z is None else [_scalar(op, z)]), axis=axis)
    made.shape = q.shape
    return made


def _quantized(op: OpBuilder, y: ir.Value, s: ir.Value | None, z: ir.Value | None) -> ir.Value:
    assert s is not None
    return op.QuantizeLinear(y, _scalar(op, s), *([] if z is None else [_scalar(op, z)]))


def _scalar(op: OpBuilder, s: ir.Value) -> ir.Value:
    """`[1]` as a scalar."""
    return op.Squeeze(s, [0]) if s.shape is not None and list(s.shape) == [1] else s


# --- products


@expansion("QLinearMatMul", domain="")
def qlinear_matmul(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = quantized(A·B) of dequantized A and B; A's scales are of rows, B's of columns."""
    a, b = _codes(node, 0), _codes(node, 3)
    y = called(op.MatMul(_real(op, a, rank(a[0]) - 2), _real(op, b, rank(b[0]) - 1)), node.name)
    return _quantized(op, y, operand(node, 6), operand(node, 7))


@expansion("QLinearConv", domain="")
def qlinear_conv(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = quantized(X ⋆ W + B), dequantized; W has a scale per kernel, B is int32 in units of both scales."""
    if node.attributes.get_int("channels_last", 0):
        raise uncovered("has its channels last")
    x, w, b = _codes(node, 0), _codes(node, 3), operand(node, 8)
    bias = [] if b is None else [_real(op, (b, op.Mul(_scalar(op, x[1]), _scalar(op, w[1])), None))]
    kept = {name: value for name, value in node.attributes.items() if name in _CONV}
    y = called(op.Conv(_real(op, x, 1), _real(op, w, 0), *bias, **kept), node.name)
    return _quantized(op, y, operand(node, 6), operand(node, 7))


@expansion("QGemm")
def qgemm(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = α·A'·B' + C, dequantized; C is int32 in units of α and both scales; Y real if it has no scale."""
    a, b, c = _codes(node, 0), _codes(node, 3), operand(node, 6)
    alpha, tb = node.attributes.get_float("alpha", 1.0), node.attributes.get_int("transB", 0)
    unit = op.Mul(_scalar(op, a[1]), _scalar(op, b[1]))
    bias = [] if c is None else [_real(op, (c, op.Mul(unit, alpha), None), axis=-1)]
    turned = {"transA": node.attributes.get_int("transA", 0), "transB": tb, "alpha": alpha}
    y = called(op.Gemm(_real(op, a), _real(op, b, 0 if tb else 1), *bias, **turned), node.name)
    return y if operand(node, 7) is None else _quantized(op, y, operand(node, 7), operand(node, 8))


@expansion("MatMulIntegerToFloat")
def matmul_integer_to_float(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = sa·sb·(A − za)·(B − zb) + C."""
    a, b, sa, sb, za, zb, c = (operand(node, i) for i in range(7))
    return _scaled_product(op, node.name, (a, sa, za), (b, sb, zb), c)


@expansion("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = sa·sb·(Q − za)·(B − zb) + C, where Q, sa, za = DynamicQuantizeLinear(A)."""
    a, b, sb, zb, c = (operand(node, i) for i in range(5))
    q, sa, za = op.DynamicQuantizeLinear(a, _outputs=3)
    if a is not None:
        q.shape, q.dtype = a.shape, ir.DataType.UINT8
    return _scaled_product(op, node.name, (q, sa, za), (b, sb, zb), c)


def _scaled_product(op: OpBuilder, name: str | None, a: Sequence, b: Sequence, c: ir.Value | None) -> ir.Value:
    (qa, sa, za), (qb, sb, zb) = a, b
    product = called(op.MatMulInteger(qa, qb, za, zb), name)
    y = op.Mul(op.Cast(product, to=ir.DataType.FLOAT), op.Mul(sa, sb))
    return y if c is None else op.Add(y, c)


# --- weights in blocks


@expansion("MatMulNBits")
def matmul_nbits(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = A·W + C, W = s∘(Q − z) in blocks along the inputs; Q is packed as [outputs, blocks, bytes of a block].

    z is 2^(bits − 1) unless given, packed like Q or real. With g_idx, its element says the block of an input.
    With blocks along axis 0, ONNX Runtime fuses this again and rounds the activations, as accuracy_level 4 asks;
    along axis -2 it does not.
    """
    a, q, s, z, order, c = (operand(node, i) for i in range(6))
    assert a is not None and q is not None and s is not None
    k, n, bits, block = (node.attributes.get_int(name, 0) for name in ("K", "N", "bits", "block_size"))
    bits = bits or 4
    if any(x is not None and x.const_value is None for x in (q, s, z, order)):
        raise uncovered("computes its weight")
    blocks = -(-k // block)
    codes = _unpacked(q, bits).reshape(n, -1)[:, :k].T
    scale = _array(s).reshape(n, blocks).T
    if z is None:
        zero = np.full((blocks, n), 1 << (bits - 1), np.uint8)
    elif z.dtype == ir.DataType.UINT8:
        zero = _unpacked(z, bits).reshape(n, -1)[:, :blocks].T
    else:
        zero = _array(z).reshape(n, blocks).T
    dtype = ir.DataType.UINT8 if bits == 8 else ir.DataType.UINT4

    def constant(name: str, array: np.ndarray, as_codes: bool = False) -> ir.Value:
        array = np.ascontiguousarray(array)
        tensor = ir.tensor(array.astype(dtype.numpy()) if as_codes else array, name=f"{q.name}.{name}")
        return op.builder.initializer(tensor)

    kept = constant("codes", codes, as_codes=True)
    if order is None and zero.dtype == np.uint8:
        scales, zeros = constant("scale", scale.astype(np.float32)), constant("zero", zero, as_codes=True)
        rounds = node.attributes.get_int("accuracy_level", 0) == 4
        w = op.DequantizeLinear(kept, scales, zeros, axis=0 if rounds else -2, block_size=block)
    else:
        at = np.arange(k) // block if order is None else _array(order).reshape(-1)[:k]
        rows = constant("block", at.astype(np.int64))
        s_rows = op.Gather(constant("scale", scale.astype(np.float32)), rows)
        z_rows = op.Gather(constant("zero", zero.astype(np.float32)), rows)
        w = op.Mul(op.Sub(op.Cast(kept, to=ir.DataType.FLOAT), z_rows), s_rows)
    w.shape, w.dtype = ir.Shape([k, n]), ir.DataType.FLOAT
    y = called(op.MatMul(a, w), node.name)
    return y if c is None else op.Add(y, c)


@expansion("GatherBlockQuantized")
def gather_block_quantized(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = rows of s∘(Q − z), in blocks along quantize_axis, as rows of Q, s and z.

    Gather takes no codes of four bits, so each has a byte here. Packed ones are unpacked; z is then 2^(bits − 1)
    unless given.
    """
    q, indices, s = operands(node)[:3]
    z, bits = operand(node, 3), node.attributes.get_int("bits", 4)
    axis = node.attributes.get_int("gather_axis", 0) % rank(q)
    along = node.attributes.get_int("quantize_axis", 1) % rank(q)
    if axis == along or any(x is not None and x.const_value is None for x in (q, s, z)):
        raise uncovered("gathers along the blocks, or computes its table")
    packed = q.dtype == ir.DataType.UINT8 and bits < 8
    codes, scale = (_unpacked(q, bits) if packed else _array(q)), _array(s).astype(np.float32)
    zero = None if z is None else _unpacked(z, bits)[..., : scale.shape[-1]] if packed else _array(z)
    if zero is None and q.dtype == ir.DataType.UINT8:
        zero = np.full(scale.shape, 1 << (bits - 1), np.uint8)
    byte = np.int8 if q.dtype in (ir.DataType.INT4, ir.DataType.INT8) else np.uint8
    tables = {"codes": codes.astype(byte), "scale": scale} | ({} if zero is None else {"zero": zero.astype(byte)})
    rows = []
    for name, table in tables.items():
        kept = op.builder.initializer(ir.tensor(np.ascontiguousarray(table), name=f"{q.name}.{name}"))
        rows.append(op.Gather(kept, indices, axis=axis))
        rows[-1].dtype = kept.dtype
    moved = along if along < axis else along + rank(indices) - 1
    return op.DequantizeLinear(*rows, axis=moved, block_size=node.attributes.get_int("block_size", 128))


def _array(x: ir.Value) -> np.ndarray:
    assert x.const_value is not None
    return x.const_value.numpy()


def _unpacked(x: ir.Value, bits: int) -> np.ndarray:
    """The codes of packed bytes, the lowest bits first: `[..., 8/bits·bytes]`."""
    packed = _array(x).astype(np.uint8).reshape(*_array(x).shape, 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed >> shifts) & ((1 << bits) - 1)).reshape(*_array(x).shape[:-1], -1)


# --- everything else: dequantized, computed, quantized


def _between(inputs: int, compute: Callable[[OpBuilder, ir.Node, Sequence[ir.Value]], ir.Value]) -> Callable:
    """An expansion of a node with `inputs` inputs of codes, then the output's scale and zero point."""

    def expand(op: OpBuilder, node: ir.Node) -> ir.Value:
        reals = [_real(op, _codes(node, 3 * i)) for i in range(inputs)]
        return _quantized(op, compute(op, node, reals), operand(node, 3 * inputs), operand(node, 3 * inputs + 1))

    expand.__doc__ = compute.__doc__
    return expand


def _attributes(node: ir.Node, *names: str) -> dict[str, ir.Attr]:
    return {name: value for name, value in node.attributes.items() if name in names}


def _average_pool(op: OpBuilder, node: ir.Node, xs: Sequence[ir.Value]) -> ir.Value:
    """Y = AveragePool(X)."""
    if node.attributes.get_int("channels_last", 0):
        raise uncovered("has its channels last")
    return op.AveragePool(xs[0], **_attributes(node, *_POOL))


def _global_average_pool(op: OpBuilder, node: ir.Node, xs: Sequence[ir.Value]) -> ir.Value:
    """Y = the mean of every channel."""
    first = 1 if node.attributes.get_int("channels_last", 0) else 2
    last = rank(xs[0]) - (1 if first == 1 else 0)
    return op.ReduceMean(xs[0], list(range(first, last)), keepdims=1)


def _leaky_relu(op: OpBuilder, node: ir.Node, xs: Sequence[ir.Value]) -> ir.Value:
    """Y = LeakyRelu(X)."""
    return op.LeakyRelu(xs[0], **_attributes(node, "alpha"))


expansion("QLinearAdd")(_between(2, lambda op, node, xs: op.Add(*xs)))
expansion("QLinearMul")(_between(2, lambda op, node, xs: op.Mul(*xs)))
expansion("QLinearSigmoid")(_between(1, lambda op, node, xs: op.Sigmoid(*xs)))
expansion("QLinearLeakyRelu")(_between(1, _leaky_relu))
expansion("QLinearAveragePool")(_between(1, _average_pool))
expansion("QLinearGlobalAveragePool")(_between(1, _global_average_pool))


@expansion("QLinearSoftmax")
def qlinear_softmax(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = Softmax(X) along axis; before opset 13, over all axes from that one on."""
    x, axis = _real(op, _codes(node, 0)), node.attributes.get_int("axis", -1)
    if node.attributes.get_int("opset", 13) >= 13:
        y = op.Softmax(x, axis=axis)
    else:
        flat = op.Softmax(op.Flatten(x, axis=axis), axis=-1)
        y = op.Reshape(flat, op.Shape(x))
    return _quantized(op, y, operand(node, 3), operand(node, 4))


@expansion("QLinearConcat")
def qlinear_concat(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = [X₁ … Xₙ] along axis; the output's scale and zero point come first, then those of each input after it."""
    reals = [_real(op, _codes(node, at)) for at in range(2, len(node.inputs), 3)]
    y = op.Concat(*reals, axis=node.attributes["axis"].as_int())
    return _quantized(op, y, operand(node, 0), operand(node, 1))


@expansion("QLinearWhere")
def qlinear_where(op: OpBuilder, node: ir.Node) -> ir.Value:
    """Y = A where C, else B."""
    y = op.Where(operand(node, 0), _real(op, _codes(node, 1)), _real(op, _codes(node, 4)))
    return _quantized(op, y, operand(node, 7), operand(node, 8))


@expansion("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def standard(op: OpBuilder, node: ir.Node) -> ir.Value:
    """The standard operator, under ONNX Runtime's own name for types that the opset of its time lacked."""
    return getattr(op, node.op_type)(*node.inputs, **_attributes(node, "axis", "block_size"))
