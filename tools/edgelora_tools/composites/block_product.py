"""A frozen product by a matrix of codes in blocks: Y = X·Ŵ + b, Ŵᵀ = s∘(Q − z) + o, one s, z and o for inputs that
follow. There is no o where zero points are codes.

The pass that quantizes a base makes these nodes (passes/quantize.py); no group of nodes is recognised as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import OpBuilder

from edgelora_tools.composites.quantized_product import MICROSOFT
from edgelora_tools.gradients.nodes import operand
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import annotate, dims, rank, shaped
from edgelora_tools.lowering import DOMAIN

OP_TYPE = "BlockProduct"
_ROUNDS = 4  # MatMulNBits' accuracy_level at which blocks of X become bytes


@dataclass(frozen=True)
class Blocks:
    """Codes of a matrix: Ŵᵀ `[out, in]` = scale∘(codes − zero) + offset, each of `[out, blocks]` for `block` inputs.

    `codes` is `[out, blocks·block]`: where `in` is no multiple of the block, what is beyond it stands for zeros, and
    there is no offset.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8]
    bits: int
    offset: NDArray[np.float32] | None = None

    @property
    def block(self) -> int:
        """The inputs of a block."""
        return self.codes.shape[1] // self.scale.shape[1]

    def real(self, inputs: int) -> NDArray[np.float32]:
        """Ŵ `[in, out]`."""
        blocked = self.codes.reshape(*self.scale.shape, -1).astype(np.float32)
        whole = (blocked - self.zero[..., None]) * self.scale[..., None]
        if self.offset is not None:
            whole += self.offset[..., None]
        return whole.reshape(len(self.codes), -1)[:, :inputs].T

    def packed(self) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
        """Codes `[out, blocks, bytes]`, scales and zero points `[out, bytes]` as MatMulNBits has them."""
        codes = _packed(self.codes.reshape(*self.scale.shape, -1), self.bits)
        return codes, self.scale, _packed(self.zero, self.bits)


class BlockProduct:
    """BlockProduct(X `[..., in]`, Q `[out, blocks, bytes]`, s `[out, blocks]`, z `[out, bytes]`, b `[out]` or absent,
    o `[out, blocks]` or absent).

    Q and z are packed, two codes of 4 bits to a byte, the lower first. With `rounds`, the runtime may turn each block
    of a row of X into bytes by a scale of its own, and does where that is faster.
    """

    op_type = OP_TYPE

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        """Y = MatMulNBits(X, Q, s, z) + b, and the sum of each block of X times its o."""
        x, codes, scale, zero, bias, offset = (operand(node, i) for i in range(6))
        assert x is not None
        op.builder.graph.opset_imports[MICROSOFT] = 1
        attributes = {
            "K": node.attributes["inputs"].as_int(),
            "N": node.attributes["outputs"].as_int(),
            "bits": node.attributes["bits"].as_int(),
            "block_size": node.attributes["block"].as_int(),
            "accuracy_level": _ROUNDS if node.attributes.get_int("rounds", 0) else 0,
        }
        product = op.builder.opset(MICROSOFT, 1).MatMulNBits
        if offset is None:
            return (product(x, codes, scale, zero, None, bias, **attributes),)
        rows = x if rank(x) == 2 else op.Reshape(x, [-1, attributes["K"]])
        y = product(rows, codes, scale, zero, None, bias, **attributes)
        sums = op.ReduceSum(op.Reshape(rows, [-1, *dims(offset)[1:], attributes["block_size"]]), [-1], keepdims=0)
        y = op.Add(y, op.Gemm(sums, offset, transB=1))
        whole = (op.Shape(x, start=0, end=-1), [attributes["N"]])
        return (y if rank(x) == 2 else op.Reshape(y, op.Concat(*whole, axis=0)),)


class DecodedProduct:
    """The same product where a backward pass follows: one that reads the bytes as the backward pass does."""

    op_type = OP_TYPE

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        """Y = X·Ŵ + b; ONNX Runtime multiplies by the transpose as it is."""
        x, bias = operand(node, 0), operand(node, 4)
        assert x is not None
        w = op.Transpose(decoded(op, node, x), perm=[1, 0])
        y = op.MatMul(x, w)
        return (y if bias is None else op.Add(y, bias),)


@gradient_rule(OP_TYPE, domain=DOMAIN)
def block_product(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X·Ŵ + b.

    dX = dY·Ŵᵀ, Ŵᵀ = s∘(Q − z) + o

    DequantizeLinear makes Ŵᵀ from the bytes that the forward product reads, and after the product it is gone: one
    matrix at a time is real. Its scales wait for dY; ONNX Runtime would run it in the forward pass, and keep it.
    """
    x = operand(node, 0)
    assert x is not None

    def dx() -> ir.Value:
        return annotate(op.MatMul(dy, decoded(op, node, dy)), x)

    return (dx, *(None for _ in node.inputs[1:]))


def decoded(op: OpBuilder, node: ir.Node, x: ir.Value) -> ir.Value:
    """Ŵᵀ `[out, in]`, made when `x` is there."""
    codes, scale, zero, offset = matrix(op, node)
    block, inputs = node.attributes["block"].as_int(), node.attributes["inputs"].as_int()
    turned = op.DequantizeLinear(codes, _after(op, scale, x), zero, axis=1, block_size=block)
    turned.dtype, turned.shape = ir.DataType.FLOAT, codes.shape
    if offset is not None:
        blocked = [*dims(scale), block]
        moved = shaped(op.Add(shaped(op.Reshape(turned, blocked), blocked, turned), offset), blocked, turned)
        turned = shaped(op.Reshape(moved, [*dims(codes)]), dims(codes), turned)
    if dims(codes)[1] == inputs:
        return turned
    turned = op.Slice(turned, [0], [inputs], [1])
    turned.dtype, turned.shape = ir.DataType.FLOAT, ir.Shape([dims(codes)[0], inputs])
    return turned


def _after(op: OpBuilder, scale: ir.Value, x: ir.Value) -> ir.Value:
    """The scales, and below them no rows of x: nothing that reads them can run before x is there."""
    nothing = op.Slice(op.Reshape(x, [-1]), [0], [0], [0])
    rows = op.Reshape(nothing, [0, dims(scale)[1]], allowzero=1)
    return annotate(op.Concat(scale, rows, axis=0), scale)


def matrix(op: OpBuilder, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
    """Codes `[out, blocks·block]`, s and z `[out, blocks]` and o `[out, blocks, 1]`, made once for each weight."""
    packed, scale, known = node.inputs[1], node.inputs[2], op.builder.graph.initializers
    assert packed is not None and scale is not None
    names = [f"{packed.name}.{what}" for what in ("matrix", "zero", "offset")]
    if names[0] not in known:
        blocks = blocks_of(node)
        kind = np.uint8 if blocks.bits == 8 else ml_dtypes.uint4
        arrays = [blocks.codes.astype(kind), blocks.zero.astype(kind)]
        if blocks.offset is not None:
            arrays.append(blocks.offset[..., None])
        for name, array in zip(names, arrays, strict=False):
            op.builder.initializer(ir.tensor(array, name=name))
    return known[names[0]], scale, known[names[1]], known.get(names[2])


def blocks_of(node: ir.Node) -> Blocks:
    """What the node's initializers hold."""
    arrays = [x.const_value.numpy() if x is not None and x.const_value is not None else None for x in node.inputs[1:]]
    codes, scale, zero, _, offset = (*arrays, None, None)[:5]
    assert codes is not None and scale is not None and zero is not None
    bits = node.attributes["bits"].as_int()
    zeros = _unpacked(zero, bits)[:, : scale.shape[1]]
    return Blocks(_unpacked(codes, bits).reshape(len(codes), -1), scale, zeros, bits, offset)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Two codes of 4 bits to a byte along the last axis, the lower first."""
    if bits == 8:
        return codes
    even = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return (even[..., 0::2] | even[..., 1::2] << 4).astype(np.uint8)


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1).astype(np.uint8)


BLOCK_PRODUCT, DECODED_PRODUCT = BlockProduct(), DecodedProduct()
