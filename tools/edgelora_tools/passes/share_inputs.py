"""Adapters of one input, as query, key and value have it, become one node: X·[A₁|A₂|…] is one product.

So are the gradients of X and of all the A. A product with 8 columns takes as long as one with 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.methods.lora import OP_TYPE


def share_inputs(graph: ir.Graph) -> None:
    """Join the nodes of every input that has several, in place. Masks of dropout make inputs differ."""
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
            readers.setdefault(operands(node)[0], []).append(node)
    several = {x: nodes for x, nodes in readers.items() if len(nodes) > 1}
    for x, nodes in several.items():
        _join(graph, x, nodes)
    if several:
        graph.sort()  # A and B may be turned before the later of the nodes


def _join(graph: ir.Graph, x: ir.Value, nodes: Sequence[ir.Node]) -> None:
    joined = ir.node(OP_TYPE, [x, *(v for n in nodes for v in n.inputs[1:])], domain=DOMAIN, num_outputs=len(nodes) + 1)
    h = joined.outputs[-1]
    ranks = [dims(a)[1] for a in operands(joined)[1::2]]
    width = sum(int(str(r)) for r in ranks) if all(isinstance(r, int) for r in ranks) else "+".join(map(str, ranks))
    h.shape, h.type = ir.Shape([*dims(x)[:-1], width]), x.type
    for node, y in zip(nodes, joined.outputs, strict=False):
        old = node.outputs[0]
        y.shape, y.type = old.shape, old.type
        old.replace_all_uses_with(y)
    graph.insert_before(nodes[0], joined)
    graph.remove(nodes, safe=True)
