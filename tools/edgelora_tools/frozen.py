"""Frozen weights: initializers, and what is computed from them alone, as a quantized model computes weights."""

from __future__ import annotations

from typing import TypeGuard

import onnx_ir as ir

_CODES = frozenset({
    ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16,
    ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ,
})  # fmt: skip
_DECODING = frozenset({
    "DequantizeLinear", "Cast", "CastLike", "Sub", "Mul", "Div", "Add", "Gather", "Transpose", "Reshape", "Squeeze",
    "Unsqueeze", "Identity",
})  # fmt: skip
_FEW = 1024


def is_frozen(x: ir.Value | None) -> bool:
    """Whether `x` is an initializer or what codes that are one stand for."""
    if x is None or x.const_value is not None:
        return x is not None
    node = x.producer()
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _DECODING:
        return False
    return all(is_frozen(y) for y in node.inputs if y is not None)


def is_real(x: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether `x` is an initializer of float32 numbers."""
    return x is not None and x.const_value is not None and x.const_value.dtype == ir.DataType.FLOAT


def same_frozen(a: ir.Value | None, b: ir.Value | None) -> bool:
    """Whether two frozen values are equal: of equal initializers, computed alike."""
    if a is b or a is None or b is None:
        return a is b
    if a.const_value is not None and b.const_value is not None:
        first, second = a.const_value, b.const_value
        return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    m, n = a.producer(), b.producer()
    if m is None or n is None or m.op_type != n.op_type or len(m.inputs) != len(n.inputs):
        return False
    return dict(m.attributes) == dict(n.attributes) and all(map(same_frozen, m.inputs, n.inputs))


def source_of(x: ir.Value) -> ir.Value:
    """The initializer that a frozen value's numbers come from: the codes, where it is computed."""
    node = x.producer()
    while x.const_value is None and node is not None:
        x = next(y for y in node.inputs if y is not None)
        node = x.producer()
    return x


def decodes(node: ir.Node) -> bool:
    """Whether the node makes real numbers of many codes that are an initializer: folded, they would grow fourfold."""
    x = node.inputs[0] if node.inputs else None
    if x is None or x.const_value is None or node.op_type not in _DECODING:
        return False
    return x.const_value.dtype in _CODES and x.const_value.size > _FEW


def rounds_activations(model: ir.Model) -> bool:
    """Whether ONNX Runtime rounds real numbers that depend on the inputs when it runs the model.

    Quantizers do. So does its product by a dequantized matrix whose scales lie along an axis counted from the
    front (MatMulNBits, accuracy level 4).
    """
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") and not is_frozen(node.inputs[0]):
            return True
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        decoder = weight.producer() if weight is not None and is_frozen(weight) else None
        if decoder is not None and decoder.op_type == "DequantizeLinear" and decoder.attributes.get_int("axis", 1) >= 0:
            return True
    return False
