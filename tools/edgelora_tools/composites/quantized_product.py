"""A frozen product in integers, forward and backward: Y = ((Q(X∘t) − z)·Wq)∘s + b.

The pass that quantizes a base makes these nodes (passes/quantize.py); no group of nodes is recognised as one.

Codes of weights are signed, of 7 or 8 bits. x86 processors without VNNI multiply unsigned by signed bytes in pairs and
add the two in 16 bits, which saturate; 2·255·64 = 32640 does not. For 8 bits a session must be told to be exact
(edgelora/byte_products.py), and is slower there (docs/decisions/0013, 0030).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operand
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import annotate
from edgelora_tools.lowering import DOMAIN

OP_TYPE = "QuantizedProduct"
LARGEST = {7: 64, 8: 127}  # code of a weight, by its bits
MICROSOFT = "com.microsoft"
ZERO, TOP = 128, 255
FINE = 254  # steps of the second digit in one of the first
TINY = 1e-30  # of a scale, where all is 0


class QuantizedProduct:
    """QuantizedProduct(X `[..., in]`, Wq `[in, out]`, s `[out]`, t `[in]`, b `[out]`, c `[k]`, W_c `[k, out]`), `rows`.

    t evens out the channels of X, and W has been divided by it (SmoothQuant, arXiv:2211.10438). X∘t is quantized when
    the graph runs: by one scale and zero point, which products that share X and t share; or, where `rows` is not 0,
    by a scale for each row, so that a row's result depends on no other row. `rows` is then the code of 0: 128, or
    less where nearly all of a row is positive, as after a GELU. All from t on may be absent.

    Channels c, of which t is 0, are so large that a row's scale would leave the others few codes: they are multiplied
    in real numbers, by rows W_c of the matrix (LLM.int8(), arXiv:2208.07339). With `digits` 2 a row is quantized
    twice, the second time what the first left over: for rows whose largest number is now in this channel, now in that.
    """

    op_type = OP_TYPE

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        """Y = sx·(Q − z)·W∘s + X_c·W_c + b, Q, sx, z = DynamicQuantizeLinear(X∘t); with `rows` by rows."""
        x, codes, scale, even, bias, channels, kept = (operand(node, i) for i in range(7))
        assert x is not None and codes is not None and scale is not None
        evened = x if even is None else op.Mul(x, even)
        middle = node.attributes.get_int("rows", 0)
        if not middle:
            q, sx, z = op.DynamicQuantizeLinear(evened, _outputs=3)
            return (integer_product(op, q, codes, sx, scale, z, bias),)
        y = product_of_rows(op, evened, codes, scale, middle, node.attributes.get_int("digits", 1))
        if channels is not None and kept is not None:
            apart = op.Gather(x, channels, axis=-1)
            y = op.Add(y, op.MatMul(apart, kept))
        return (y if bias is None else op.Add(y, bias),)


def product_of_rows(
    op: OpBuilder, x: ir.Value, codes: ir.Value, scale: ir.Value, middle: int = ZERO, digits: int = 1
) -> ir.Value:
    """ρ∘(Q(X/ρ)·W∘s), ρ the least scale of a row at which no code of it leaves [0, 255], that of 0 being `middle`.

    With two digits, what Q leaves over, at most half a step, is quantized in steps of 1/254 of one.
    """
    up, down = TOP - middle, middle
    largest, smallest = op.ReduceMax(x, [-1], keepdims=1), op.ReduceMin(x, [-1], keepdims=1)
    rho = op.Max(largest, op.Mul(smallest, -up / down), TINY)  # X is read twice; ReduceMax(Abs(X)) would write it too
    step, zero = op.Constant(value_float=1 / up), op.Constant(value=ir.tensor(np.uint8(middle)))
    whole = op.Div(x, rho)
    q = op.QuantizeLinear(whole, step, zero)
    y = integer_product(op, q, codes, step, scale, zero)
    if digits > 1:
        fine, half = op.Constant(value_float=1 / up / FINE), op.Constant(value=ir.tensor(np.uint8(ZERO)))
        left = second_digit(op, whole, q, step, zero, fine, half)
        y = op.Add(y, integer_product(op, left, codes, fine, scale, half))
    return op.Mul(y, rho)


def second_digit(
    op: OpBuilder, x: ir.Value, q: ir.Value, step: ir.Value, zero: ir.Value, fine: ir.Value, half: ir.Value
) -> ir.Value:
    """Codes, 0 being `half`, of what Q(X/step) leaves over, in steps of `fine`."""
    return op.QuantizeLinear(op.Sub(x, op.DequantizeLinear(q, step, zero)), fine, half)


def integer_product(
    op: OpBuilder,
    q: ir.Value,
    codes: ir.Value,
    step: ir.Value,
    scale: ir.Value,
    zero: ir.Value,
    bias: ir.Value | None = None,
) -> ir.Value:
    """step·(Q − zero)·W∘s + b, scaled while the product is written: what ONNX Runtime makes of four nodes."""
    op.builder.graph.opset_imports[MICROSOFT] = 1
    return op.builder.opset(MICROSOFT, 1).MatMulIntegerToFloat(q, codes, step, scale, zero, None, bias)


@gradient_rule(OP_TYPE, domain=DOMAIN)
def quantized_product(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X·Ŵ + b, Ŵ = t∘W∘s, straight through the rounding of X (Bengio et al. 2013).

    dX = ρ∘(Q(dY/ρ)·Vᵀ∘v), Vᵀ∘v ≈ Ŵᵀ, ρ the absolute maximum of each row of dY

    Rows of dY differ by orders of magnitude, and one scale for all would lose the small ones. Ŵᵀ has codes of its own,
    of `back` bits, because MatMulIntegerToFloat transposes nothing; these have a scale for each of its columns. With
    W's own codes dY∘s would be quantized, and a single large s costs all other columns their digits.
    """
    x = operand(node, 0)
    assert x is not None

    def dx() -> ir.Value:
        return annotate(product_of_rows(op, dy, *backward_codes(op, node)), x)

    return (dx, *(None for _ in node.inputs[1:]))


def backward_codes(op: OpBuilder, node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The initializers Vᵀ `[out, in]` and v `[in]`, made once for each weight."""
    codes = node.inputs[1]
    assert codes is not None
    names, known = (f"{codes.name}.back", f"{codes.name}.back.scale"), op.builder.graph.initializers
    if names[0] not in known:
        largest = LARGEST[node.attributes.get_int("back", 7)]
        for name, array in zip(names, codes_of(real_weight(node).T, largest, axis=1), strict=True):
            op.builder.initializer(ir.tensor(np.ascontiguousarray(array), name=name))
    return known[names[0]], known[names[1]]


def real_weight(node: ir.Node) -> NDArray[np.float32]:
    """Ŵ `[in, out]`: the real numbers that the codes of a node stand for."""
    codes, scale, even, channels, kept = (
        None if (x := operand(node, i)) is None else x.const_value for i in (1, 2, 3, 5, 6)
    )
    assert codes is not None and scale is not None
    w = codes.numpy().astype(np.float32) * scale.numpy()
    if even is not None:
        w *= even.numpy()[:, None]
    if channels is not None and kept is not None:
        w[channels.numpy()] = kept.numpy()
    return w


def codes_of(w: NDArray[np.float32], largest: int, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(Wq, s) with W ≈ Wq∘s, s along `axis`: the largest of each slice becomes the largest code; 1 for zeros."""
    peak = np.abs(w).max(axis=1 - axis, keepdims=True, initial=0.0)
    scale = np.where(peak > 0, peak / largest, 1).astype(np.float32)
    return np.clip(np.rint(w / scale), -largest, largest).astype(np.int8), scale.reshape(-1)


QUANTIZED_PRODUCT = QuantizedProduct()
