"""A model in double precision: every real number of it, wherever it is stored or named."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

REAL = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_TYPE_ATTRIBUTES = ("to", "dtype", "softmax_precision", "output_dtype", "output_datatype")
_CONSTANTS = {"value_float": lambda a: a.as_float(), "value_floats": lambda a: a.as_floats()}


def bring_to_float64(model: ir.Model) -> None:
    """Single and half precision become double: inputs, weights, attributes, and the types that operators name."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in REAL:
                value.const_value = ir.tensor(widened(value.const_value), name=value.name)
        for value in (*graph.inputs, *graph.initializers.values(), *(y for node in graph for y in node.outputs)):
            if value.dtype in REAL and isinstance(value.type, ir.TensorType):
                value.type = ir.TensorType(ir.DataType.DOUBLE)
        for node in graph:
            _widen_attributes(node)


def widened(tensor: ir.TensorProtocol) -> np.ndarray:
    """The numbers of a tensor in float64."""
    return tensor.numpy().astype(np.float64)


def _widen_attributes(node: ir.Node) -> None:
    if node.op_type == "GroupNormalization":  # ONNX's evaluator obeys its type for this normalization alone
        node.attributes["stash_type"] = ir.AttrInt64("stash_type", int(ir.DataType.DOUBLE))
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1)))
    for name, attribute in list(node.attributes.items()):
        if name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.value in REAL:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.DOUBLE))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in REAL:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(widened(attribute.value)))
        elif node.op_type == "Constant" and name in _CONSTANTS:
            number = np.asarray(_CONSTANTS[name](attribute), np.float64)
            node.attributes.pop(name)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(number))
