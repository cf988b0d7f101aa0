"""Products of codes: activations that one scale decodes, times constant bytes with a scale, or one for each output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgelora_tools.frozen import is_frozen, is_real, source_of
from edgelora_tools.gradients.nodes import operand

VIEWS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class CodedWeight:
    """Codes that are an initializer: their decoder, what they are called, their scale, or one for each output."""

    decoder: ir.Node
    name: str
    scale: np.ndarray


def decoder_of(x: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that `x` is a view of, if one constant scale makes it of bytes that are computed."""
    node = None if x is None else x.producer()
    while node is not None and node.op_type in VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "DequantizeLinear" or is_frozen(node.inputs[0]):
        return None
    q = node.inputs[0]
    return node if q is not None and q.dtype in _BYTES and one_scale(node) is not None else None


def one_scale(node: ir.Node) -> np.float32 | None:
    """The scale of a quantizer or a decoder, if it is one, in float32, and constant as the zero point is."""
    s, z = operand(node, 1), operand(node, 2)
    if s is None or s.const_value is None or s.const_value.size != 1 or (z is not None and z.const_value is None):
        return None
    return array(s).reshape(-1)[0] if s.const_value.dtype == ir.DataType.FLOAT else None


def weight_of(product: ir.Node) -> CodedWeight | None:
    """The weight of a product, if it is constant bytes with a scale, or one for each output."""
    w, attributes = product.inputs[1], product.attributes
    node = _constant_decoder(w)
    if w is None or node is None:
        return None
    codes, scale, turned = array(node.inputs[0]), array(node.inputs[1]), attributes.get_int("transB", 0)
    plain = attributes.get_int("transA", 0) == 0 and all(attributes.get_float(n, 1.0) == 1.0 for n in ("alpha", "beta"))
    output = 0 if product.op_type == "Conv" or turned else codes.ndim - 1
    along = scale.ndim == 0 or node.attributes.get_int("axis", 1) % codes.ndim == output
    in_bytes = codes.dtype in (np.int8, np.uint8) and scale.dtype == np.float32
    if not plain or not along or not in_bytes or scale.ndim > 1 or node.attributes.get_int("block_size", 0):
        return None
    return CodedWeight(node, str(source_of(w).name), scale)


def numbers_of(x: ir.Value) -> np.ndarray | None:
    """A frozen vector's numbers, of codes too; None where it is neither."""
    if is_real(x):
        return array(x)
    node = _constant_decoder(x)
    if node is None:
        return None
    codes, scale, *zero = (array(y).astype(np.float64) for y in node.inputs)
    return (codes - (zero[0] if zero else 0)) * scale


def array(x: ir.Value | None) -> np.ndarray:
    """The numbers of a constant."""
    assert x is not None and x.const_value is not None
    return x.const_value.numpy()


def _constant_decoder(x: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear of initializers that makes `x`."""
    node = None if x is None else x.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return node if all(y is not None and y.const_value is not None for y in node.inputs) else None
