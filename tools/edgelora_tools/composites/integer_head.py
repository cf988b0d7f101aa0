"""A block of a language model's logits in integers, forward and backward, where its head is codes: for training alone.

Z = H·Qᵀ∘s of codes Q int8 `[tokens, width]` and scales s `[tokens]`, and back G = (e∘s)·Q, e telling how likely each
token is, 1 being the block's likeliest. H and e∘s are taken in two digits of 8 bits, which leave 1/64,000 of their
largest number or less. One digit would be enough for most gradients; those of a deep model's first layers are what is
left of much that cancels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.composites.quantized_product import FINE, MICROSOFT, TINY, TOP, ZERO, integer_product, second_digit
from edgelora_tools.gradients.shapes import annotate, dims, shaped

Pull = Callable[[OpBuilder, ir.Value], ir.Value]
"""From a cotangent of a block's logits to that of the hidden states."""


class IntegerHead:
    """Logits of hidden states H `[rows, width]`, whose digits are made once, where `op` emits."""

    def __init__(self, op: OpBuilder, h: ir.Value) -> None:
        op.builder.graph.opset_imports[MICROSOFT] = 1
        highest, lowest = (reduce(h, [-1], keepdims=1) for reduce in (op.ReduceMax, op.ReduceMin))
        least = op.Constant(value=ir.tensor(np.full((1, 1), TINY, np.float32)))  # so that there may be no rows
        largest = op.ReduceMax(op.Concat(op.Max(highest, op.Neg(lowest)), least, axis=0), keepdims=0)
        self._h, self._digits = h, _Digits(op, h, largest, ZERO)

    def block(self, op: OpBuilder, codes: ir.Value, scale: ir.Value, bias: ir.Value | None) -> tuple[ir.Value, Pull]:
        """Z `[rows, tokens]` of a block's codes, scales and biases, and the way back from e."""
        h = self._h
        z = self._digits.times(op, op.Transpose(codes, perm=[1, 0]), scale)
        z = shaped(z if bias is None else op.Add(z, bias), [dims(h)[0], dims(codes)[0]], h)

        def pull(op: OpBuilder, e: ir.Value) -> ir.Value:
            shares = _Digits(op, op.Mul(e, scale), op.ReduceMax(scale, keepdims=0), 0)
            return annotate(shares.times(op, codes, op.Constant(value_float=1.0)), h)

        return z, pull


class _Digits:
    """Two digits of X, all of which is within ±`largest`, or from 0 to there where the code `middle` of 0 is 0."""

    def __init__(self, op: OpBuilder, x: ir.Value, largest: ir.Value, middle: int) -> None:
        zero, half = (op.Constant(value=ir.tensor(np.uint8(code))) for code in (middle, ZERO))
        step = op.Mul(largest, 1 / (TOP - middle))
        fine = op.Mul(step, 1 / FINE)
        first = op.QuantizeLinear(x, step, zero)
        self._made = ((first, step, zero), (second_digit(op, x, first, step, zero, fine, half), fine, half))

    def times(self, op: OpBuilder, codes: ir.Value, scale: ir.Value) -> ir.Value:
        """X·codes∘scale."""
        return op.Add(*(integer_product(op, q, codes, step, scale, zero) for q, step, zero in self._made))
