"""Activations that a graph quantizes to int8 and dequantizes become uint8, 128 higher: the same real numbers.

ONNX Runtime does that when it loads a graph on processors whose kernels prefer it. But where it has moved such
a pair over a Transpose first, as it does in backward passes, it leaves the pair with two types, and refuses the
graph (1.32, "output_dtype INT8 does not match y_zero_point type UINT8").
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.frozen import is_frozen
from edgelora_tools.gradients.nodes import operand
from edgelora_tools.passes.free_names import free_names

_MOVING = {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Expand", "Identity"}


def unsigned_codes(model: ir.Model) -> ir.Model:
    """Shift the zero points of every QuantizeLinear to int8 whose codes are moved and dequantized alone, in place."""
    op = GraphBuilder(free_names(model.graph)).op
    raised: dict[ir.Value, ir.Value] = {}
    for node in model.graph:
        if node.op_type != "QuantizeLinear" or is_frozen(node.inputs[0]) or not _shiftable(node):
            continue
        codes, dequantizers = _reached(node.outputs[0])
        if any(q.is_graph_output() for q in codes) or not all(map(_shiftable, dequantizers)):
            continue
        for each in (node, *dequantizers):
            z = each.inputs[2]
            assert z is not None and z.const_value is not None
            if z not in raised:
                higher = (z.const_value.numpy().astype(np.int16) + 128).astype(np.uint8)
                raised[z] = op.builder.initializer(ir.tensor(higher, name=f"{z.name}.unsigned"))
            each.replace_input_with(2, raised[z])
        node.attributes.pop("output_dtype", None)
        for q in codes:
            q.dtype = ir.DataType.UINT8
    return model


def _reached(q: ir.Value) -> tuple[list[ir.Value], list[ir.Node]]:
    """The values that codes are moved to, `q` among them, and the nodes that read these and do not move them."""
    codes, readers = [q], []
    for value in codes:
        for user, position in value.uses():
            if user.op_type in _MOVING and position == 0:
                codes.extend(user.outputs)
            else:
                readers.append(user)
    return codes, readers


def _shiftable(node: ir.Node) -> bool:
    """Whether the node quantizes to int8 or dequantizes from it with a zero point that is an initializer."""
    z = operand(node, 2) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
    return z is not None and z.dtype == ir.DataType.INT8 and z.const_value is not None
