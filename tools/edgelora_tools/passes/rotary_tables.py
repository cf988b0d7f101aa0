"""RotaryEmbedding's tables for every row of a batch.

torch's exporter gives tables of a batch of one; ONNX asks for one per row, and ONNX Runtime refuses others.
"""

from __future__ import annotations

import onnx_ir as ir

from edgelora_tools.gradients.nodes import operand
from edgelora_tools.gradients.shapes import dims, known_equal


def has_shared_tables(model: ir.Model) -> bool:
    """Whether a RotaryEmbedding may have tables of another batch than its input's."""
    return any(_shares(node) for node in model.graph.all_nodes())


def repeat_rotary_tables(model: ir.Model) -> ir.Model:
    """Broadcast cosines and sines `[1, positions, pairs]` to the batch of the node's input, in place."""
    for graph in model.graphs():
        for node in list(graph):
            if _shares(node):
                size = _node(graph, node, "Shape", [node.inputs[0]], {"start": 0, "end": 1}, ir.DataType.INT64)
                one = _node(graph, node, "Constant", [], {"value_ints": [1, 1]}, ir.DataType.INT64)
                shape = _node(graph, node, "Concat", [size, one], {"axis": 0}, ir.DataType.INT64)
                for position in (1, 2):
                    table = node.inputs[position]
                    assert table is not None
                    node.replace_input_with(position, _node(graph, node, "Expand", [table, shape], {}, table.dtype))
    return model


def _shares(node: ir.Node) -> bool:
    x, cos = operand(node, 0), operand(node, 1)
    if node.op_type != "RotaryEmbedding" or node.domain not in ("", "ai.onnx") or operand(node, 3) is not None:
        return False
    assert x is not None and cos is not None
    return x.shape is None or cos.shape is None or not known_equal(dims(x)[:1], dims(cos)[:1])


def _node(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict,
    dtype: ir.DataType | None,
) -> ir.Value:
    made = ir.node(op_type, inputs, attributes)
    graph.insert_before(before, made)
    if dtype is not None:
        made.outputs[0].dtype = dtype
    return made.outputs[0]
