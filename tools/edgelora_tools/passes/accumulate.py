"""A sum with a product of matrices is the product's own: Add(A·B, C) becomes Gemm(A, B, C).

The product then starts from C in place of zeros, and the sum is no pass over memory of its own: biases, the deltas of
adapters, and the gradients that meet at a value.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora_tools.gradients.shapes import Dim, dims, known_equal, rank

_PRODUCTS = frozenset({"MatMul", "Gemm"})


def accumulate_products(model: ir.Model) -> ir.Model:
    """Give every sum of a product `[rows, width]` with a tensor of its shape, or a vector, to the product."""
    for node in list(model.graph):
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        (total,) = node.outputs
        if total.shape is None or rank(total) != 2:
            continue
        for product, other in (node.inputs, node.inputs[::-1]):
            if product is not None and other is not None and _takes(product, other, total):
                _replace(model.graph, node, product, other)
                break
    common.TopologicalSortPass()(model)
    return model


def _takes(product: ir.Value, other: ir.Value, total: ir.Value) -> bool:
    """Whether `product` is one that only the sum reads and that adds nothing yet, and `other` fits."""
    node = product.producer()
    if node is None or node.op_type not in _PRODUCTS or node.domain not in ("", "ai.onnx"):
        return False
    if len(product.uses()) != 1 or product.is_graph_output() or any(x is None for x in node.inputs[:2]):
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return False
    if any(x is None or x.shape is None or rank(x) != 2 for x in node.inputs[:2]):
        return False
    if other.shape is None or other.dtype != product.dtype or not known_equal(_dims_of(node), dims(total)):
        return False
    return known_equal(dims(other), dims(total)) or (rank(other) == 1 and dims(other)[0] == dims(total)[1])


def _dims_of(node: ir.Node) -> tuple[Dim, Dim]:
    """The shape of a product of two matrices."""
    a, b = (dims(x) for x in node.inputs[:2] if x is not None)
    rows = a[node.attributes.get_int("transA", 0)]
    columns = b[1 - node.attributes.get_int("transB", 0)]
    return rows, columns


def _replace(graph: ir.Graph, add: ir.Node, product: ir.Value, other: ir.Value) -> None:
    node, (total,) = product.producer(), add.outputs
    assert node is not None
    attributes = {k: v for k, v in node.attributes.items() if k != "beta"}
    gemm = ir.node("Gemm", [*node.inputs[:2], other], attributes, name=node.name)
    gemm.metadata_props.update(node.metadata_props)
    (made,) = gemm.outputs
    made.shape, made.type, made.name, total.name = total.shape, total.type, total.name, None
    graph.insert_before(add, gemm)
    total.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(add, safe=True)
    graph.remove(node, safe=True)
