"""Keys and values that several heads share are multiplied as they lie, not repeated for each of these heads.

Where R repeats every head of K `[batch, heads, length, size]` n times, Q·R(K)ᵀ is Q, n of its heads one below another,
times Kᵀ: views of Q and of the scores stand for copies of the whole cache (grouped queries, arXiv:2305.13245).
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.shapes import dims, rank, shaped
from edgelora_tools.lowering import emit_before
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.matching import made_by

_TURNED = [0, 1, 3, 2]


def share_heads(model: ir.Model) -> ir.Model:
    """Rewrite products with repeated heads, in place; shapes must be known (measure_shapes.py)."""
    op = GraphBuilder(free_names(model.graph)).op
    for node in list(model.graph):
        if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
            continue
        rows, repeated = node.inputs
        turned = turned_back(repeated)
        heads = of_repeated(repeated if turned is None else turned)
        if heads is None or rows is None or rows.shape is None or rank(rows) != 4:
            continue
        y = node.outputs[0]
        new = emit_before(
            model.graph, node, lambda r=rows, h=heads, t=turned is not None, y=y: _product(op, r, h, t, y)
        )
        y.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(model)
    return model


def turned_back(x: ir.Value | None) -> ir.Value | None:
    """K of its transpose: the last two of four axes are turned."""
    node = made_by(x, "Transpose")
    turned = node is not None and list(node.attributes.get_ints("perm", None) or []) == _TURNED
    return node.inputs[0] if node is not None and turned else None


def of_repeated(x: ir.Value | None) -> ir.Value | None:
    """K `[batch, heads, length, size]` of Reshape(Expand(Unsqueeze(K, 2))) `[batch, n·heads, length, size]`."""
    values: list[ir.Value] = []
    for op_type in ("Reshape", "Expand", "Unsqueeze"):
        node = None if x is None else x.producer()
        if x is None or node is None or node.op_type != op_type or x.shape is None:
            return None
        values.append(x)
        x = node.inputs[0]
    if x is None or x.shape is None or rank(x) != 4 or rank(values[1]) != 5 or rank(values[2]) != 5:
        return None
    batch, heads, length, size = dims(x)
    n = dims(values[1])[2]
    if not isinstance(heads, int) or not isinstance(n, int) or not isinstance(size, int):
        return None
    expected = [(batch, n * heads, length, size), (batch, heads, n, length, size), (batch, heads, 1, length, size)]
    return x if [dims(value) for value in values] == expected else None


def _product(op: OpBuilder, rows: ir.Value, heads: ir.Value, turned: bool, y: ir.Value) -> ir.Value:
    """The product of rows `[batch, n·heads, length, …]` with heads or their transposes, shaped as `y`."""
    count, width = dims(heads)[1], dims(y)[3]
    below = op.Reshape(rows, [0, count, -1, 0])
    if turned:
        batch, _, length, size = dims(heads)
        heads = shaped(op.Transpose(heads, perm=_TURNED), [batch, count, size, length], heads)
    made = op.Reshape(op.MatMul(below, heads), [0, dims(y)[1], -1, width if isinstance(width, int) else 0])
    return shaped(made, dims(y), y)
