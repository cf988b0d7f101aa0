"""A head that shares its matrix with the table of embeddings reads it as it lies there, `[vocabulary, width]`.

Folding Transpose(W) would make a second copy of what is often a third of a small language model.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.insertion import scope_of
from edgelora_tools.lowering import emit_before
from edgelora_tools.passes.free_names import free_names


def tie_head(model: ir.Model) -> ir.Model:
    """X·Transpose(W), where a Gather reads the numbers of W, becomes Gemm(X, W, transB=1); in place.

    The matrix is one initializer then, under the name of the head's weight.
    """
    tables = [node for node in model.graph if node.op_type == "Gather" and _matrix(node.inputs[0]) is not None]
    for node in list(model.graph):
        turned = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        weight = turned.inputs[0] if turned is not None and turned.op_type == "Transpose" else None
        mine = [table for table in tables if weight is not None and _same(weight, table.inputs[0])]
        if weight is not None and mine and node.inputs[0] is not None:
            for table in mine:
                table.replace_input_with(0, weight)
            _multiply(model, node, node.inputs[0], weight)
    common.RemoveUnusedNodesPass()(model)
    return model


def _matrix(x: ir.Value | None) -> np.ndarray | None:
    tensor = None if x is None else x.const_value
    return (
        tensor.numpy() if tensor is not None and len(tensor.shape) == 2 and tensor.dtype.is_floating_point() else None
    )


def _same(x: ir.Value, y: ir.Value | None) -> bool:
    """Whether two initializers hold the same matrix."""
    a, b = _matrix(x), _matrix(y)
    return a is not None and b is not None and a.shape == b.shape and (np.shares_memory(a, b) or np.array_equal(a, b))


def _multiply(model: ir.Model, node: ir.Node, x: ir.Value, weight: ir.Value) -> None:
    """X `[..., width]` times Wᵀ, on rows."""
    graph, scope, old = model.graph, scope_of(node), node.outputs[0]
    op = GraphBuilder(free_names(graph)).op
    assert weight.shape is not None
    vocabulary, width = (int(str(d)) for d in weight.shape)

    def emit() -> ir.Value:
        rows = op.Gemm(op.Reshape(x, [-1, width]), weight, transB=1)
        rows.producer().metadata_props.update(node.metadata_props)
        return op.Reshape(rows, op.Concat(op.Shape(x, start=0, end=-1), [vocabulary], axis=0))

    new = emit_before(graph, node, emit)
    new.shape, new.type = old.shape, old.type
    if old.is_graph_output():
        new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if scope is not None and f"{scope}.weight" not in graph.initializers:
        graph.initializers.pop(str(weight.name))
        weight.name = f"{scope}.weight"
        graph.register_initializer(weight)
