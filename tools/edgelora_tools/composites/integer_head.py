"""A block of a language model's logits in integers, forward and backward, where its head is codes: for training alone.

Z = H·Qᵀ∘s of codes Q int8 `[tokens, width]` and scales s `[tokens]`; H in two digits of 8 bits, by one scale for all
rows: behind a normalization they are of a size, and the second digit leaves 1/64,000 of the largest number. Backward,
e ≥ 0 tells how likely each token is, the likeliest of its block 1; e∘s is rounded to 1/255 of the largest s. What falls
below half of that is as nothing beside the block's likeliest token, and the label's own part is not of the block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.quantized_product import FINE, MICROSOFT, TOP, ZERO, integer_product
from edgelora_tools.gradients.shapes import annotate, dims, shaped

Pull = Callable[[OpBuilder, ir.Value], ir.Value]
"""From a cotangent of a block's logits to that of the hidden states."""

_TINY = 1e-30


class IntegerHead:
    """Logits of hidden states H `[rows, width]`, whose digits are made once, where `op` emits."""

    def __init__(self, op: OpBuilder, h: ir.Value) -> None:
        op.builder.graph.opset_imports[MICROSOFT] = 1
        self._h, up = h, TOP - ZERO
        highest, lowest = (reduce(h, [-1], keepdims=1) for reduce in (op.ReduceMax, op.ReduceMin))
        least = op.Constant(value=ir.tensor(np.full((1, 1), _TINY, np.float32)))  # so that there may be no rows
        largest = op.ReduceMax(op.Concat(op.Max(highest, op.Neg(lowest)), least, axis=0), keepdims=0)
        step, fine = op.Div(largest, float(up)), op.Div(largest, float(up * FINE))
        zero = op.Constant(value=ir.tensor(np.uint8(ZERO)))
        first = op.QuantizeLinear(h, step, zero)
        second = op.QuantizeLinear(op.Sub(h, op.DequantizeLinear(first, step, zero)), fine, zero)
        self._digits = ((first, step), (second, fine))

    def block(self, op: OpBuilder, codes: ir.Value, scale: ir.Value, bias: ir.Value | None) -> tuple[ir.Value, Pull]:
        """Z `[rows, tokens]` of a block's codes, scales and biases, and the way back from e."""
        h, turned = self._h, op.Transpose(codes, perm=[1, 0])
        zero = op.Constant(value=ir.tensor(np.uint8(ZERO)))
        z = op.Add(*(integer_product(op, q, turned, step, scale, zero) for q, step in self._digits))
        z = shaped(z if bias is None else op.Add(z, bias), [dims(h)[0], dims(codes)[0]], h)

        def pull(op: OpBuilder, e: ir.Value) -> ir.Value:
            step = op.Mul(op.ReduceMax(scale, keepdims=0), 1 / TOP)
            none, one = op.Constant(value=ir.tensor(np.uint8(0))), op.Constant(value_float=1.0)
            shares = op.QuantizeLinear(op.Mul(e, scale), step, none)
            return annotate(integer_product(op, shares, codes, step, one, none), h)

        return z, pull
