"""Weights of integer products as unsigned codes, 128 higher: the same integers, and exact wherever they run.

A bundle has signed ones, for which a host may need a session entry (edgelora/byte_products.py). Who runs a plain model
knows nothing of it. Signed codes of 7 bits need none and stay.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelora_tools.composites.quantized_product import LARGEST, ZERO
from edgelora_tools.gradients.nodes import operand

_WEIGHT, _ZERO_POINT = 1, 5  # inputs of a MatMulIntegerToFloat


def unsigned_weights(graph: ir.Graph) -> None:
    """Raise the signed weights of 8 bits of every product of bytes by 128, and their zero points from 0 to 128."""
    raised: dict[ir.Value, ir.Value] = {}
    zero: ir.Value | None = None
    for node in graph:
        codes = operand(node, _WEIGHT) if node.op_type == "MatMulIntegerToFloat" else None
        if codes is None or operand(node, _ZERO_POINT) is not None or not _saturates(codes):
            continue
        zero = zero or _initializer(graph, f"{codes.name}.unsigned.zero", ir.tensor(np.uint8(ZERO)))
        raised[codes] = raised.get(codes) or _initializer(graph, f"{codes.name}.unsigned", _higher(codes))
        node.replace_input_with(_WEIGHT, raised[codes])
        node.resize_inputs(max(len(node.inputs), _ZERO_POINT + 1))
        node.replace_input_with(_ZERO_POINT, zero)
    for codes in raised:
        if not codes.uses() and not codes.is_graph_output():
            del graph.initializers[str(codes.name)]


def _saturates(codes: ir.Value) -> bool:
    """Whether two products of unsigned bytes by these codes may leave 16 bits."""
    tensor = codes.const_value
    if tensor is None or tensor.dtype != ir.DataType.INT8:
        return False
    array = tensor.numpy()
    return bool(array.size) and max(int(array.max()), -int(array.min())) > LARGEST[7]


def _higher(codes: ir.Value) -> ir.TensorProtocol:
    """Made when it is asked for: a large model's weights are never all in memory."""
    signed = codes.const_value
    assert signed is not None

    def made() -> ir.TensorProtocol:
        return ir.tensor((signed.numpy().astype(np.int16) + ZERO).astype(np.uint8))

    return ir.LazyTensor(made, dtype=ir.DataType.UINT8, shape=ir.Shape(signed.shape.numpy()))


def _initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    tensor.name = name
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.initializers[name] = value
    return value
