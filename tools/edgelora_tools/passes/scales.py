"""A number times a product is the product's own: α of Gemm, before the product or behind it.

What is left of the number is no pass over memory.
"""

from __future__ import annotations

import onnx_ir as ir

from edgelora_tools.gradients.shapes import rank
from edgelora_tools.passes.matching import made_by, number_of


def scale_products(model: ir.Model) -> ir.Model:
    """Give every number that a product of matrices, or a sum of some, is multiplied by, or that a factor of nothing
    else is, to it."""
    for node in list(model.graph):
        if node.op_type != "Mul" or node.domain not in ("", "ai.onnx"):
            continue
        for x, other in (node.inputs, node.inputs[::-1]):
            number = number_of(other)
            if x is not None and number is not None and (_behind(node, x, number) or _before(node, number)):
                node.outputs[0].replace_all_uses_with(x)
                model.graph.remove(node, safe=True)
                break
    return model


def _behind(mul: ir.Node, x: ir.Value, number: float) -> bool:
    """The products whose sum x is take the number."""
    makers = () if mul.outputs[0].is_graph_output() else _summed(x)
    for maker in makers:
        _scale(maker, number, sum_too=True)
    return bool(makers)


def _summed(x: ir.Value) -> tuple[ir.Node, ...]:
    """The products of matrices whose sum x is, one or more, each read but once; none where x is anything else."""
    node = x.producer()
    if node is None or x.is_graph_output() or len(x.uses()) > 1:
        return ()
    if node.op_type == "Add" and node.domain in ("", "ai.onnx"):
        left, right = (() if y is None else _summed(y) for y in node.inputs)
        return (*left, *right) if left and right else ()
    return (node,) if _of_matrices(node) else ()


def _before(mul: ir.Node, number: float) -> bool:
    """The products that alone read the Mul, as a factor, take the number."""
    (y,) = mul.outputs
    uses = list(y.uses())
    if y.is_graph_output() or not all(place < 2 and _of_matrices(reader) for reader, place in uses):
        return False
    for reader, _ in uses:
        _scale(reader, number, sum_too=False)
    return bool(uses)


def _of_matrices(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    if any(made_by(x, "DequantizeLinear") for x in node.inputs):  # ONNX Runtime fuses decoders with MatMul as it stands
        return False
    return all(x is not None and x.shape is not None and rank(x) == 2 for x in node.inputs[:2])


def _scale(node: ir.Node, number: float, sum_too: bool) -> None:
    """Multiply the product, and what it is added to as well with `sum_too`."""
    node.op_type = "Gemm"
    node.attributes["alpha"] = ir.AttrFloat32("alpha", number * node.attributes.get_float("alpha", 1.0))
    if sum_too and len(node.inputs) > 2:
        node.attributes["beta"] = ir.AttrFloat32("beta", number * node.attributes.get_float("beta", 1.0))
