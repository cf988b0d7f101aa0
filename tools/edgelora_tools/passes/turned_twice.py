"""A matrix that is turned, given axes of one, and turned back is given these axes at once.

The gradient of a 1×1 kernel is: it is made as its product is fastest, turned to the product's own form, and back to
the kernel's.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import ints_of
from edgelora_tools.lowering import emit_before
from edgelora_tools.passes.matching import made_by


def turn_once(graph: ir.Graph, op: OpBuilder) -> None:
    """Rewrite Transpose(Reshape(Transpose(X), [m, n, 1, …])) as Reshape(X, [n, m, 1, …]), in place."""
    for node in list(graph):
        found = _turned_twice(node)
        if found is None:
            continue
        (x, sizes), old = found, node.outputs[0]
        new = emit_before(graph, node, lambda x=x, sizes=sizes: op.Reshape(x, sizes))
        new.shape, new.type = old.shape, old.type
        if old.is_graph_output():
            new.name, old.name = old.name, None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _turned_twice(node: ir.Node) -> tuple[ir.Value, list[int]] | None:
    """X and the sizes."""
    if node.domain or node.op_type != "Transpose":
        return None
    reshaped = made_by(node.inputs[0], "Reshape")
    sizes = None if reshaped is None else ints_of(reshaped.inputs[1])
    if reshaped is None or sizes is None or 0 in sizes or any(size != 1 for size in sizes[2:]):
        return None
    turned = made_by(reshaped.inputs[0], "Transpose")
    swapped = [1, 0, *range(2, len(sizes))]
    if turned is None or _order(turned) != [1, 0] or _order(node) != swapped or turned.inputs[0] is None:
        return None
    return turned.inputs[0], [sizes[1], sizes[0], *sizes[2:]]


def _order(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", None) or [])
