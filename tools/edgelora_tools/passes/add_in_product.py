"""A sum with a product is the product's own: Add(A·B, C) becomes Gemm(A, B, C), on rows.

The product then starts from C in place of zeros, and the sum is no pass over memory of its own: biases, and in a
forward pass the deltas of adapters (docs/decisions/0016, 0017). Gemm wants matrices: tensors are flattened to rows,
which are views.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.frozen import is_frozen
from edgelora_tools.gradients.shapes import (
    Dim,
    annotate,
    dims,
    flatten_rows,
    known_equal,
    named_by_inputs,
    rank,
    reshape_like,
)
from edgelora_tools.lowering import emit_before
from edgelora_tools.passes.free_names import free_names

_PRODUCTS = frozenset({"MatMul", "Gemm"})


Wanted = Callable[[ir.Node, ir.Value], bool]


def add_in_product(model: ir.Model, wanted: Wanted) -> ir.Model:
    """Give every sum of a product with a tensor of its shape, or of matrices with a vector, to the product.

    `wanted` tells which, by the product and what is added: `biases`, `of_adapters`.
    """
    op = GraphBuilder(free_names(model.graph)).op
    for node in list(model.graph):
        total = node.outputs[0]
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or total.shape is None or rank(total) < 2:
            continue
        for product, other in (node.inputs, node.inputs[::-1]):
            if product is not None and other is not None and _takes(product, other, node, wanted):
                emit_before(model.graph, node, partial(_replace, op, node, product, other))
                break
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return model


def biases(product: ir.Node, other: ir.Value) -> bool:
    """Vectors to products of two matrices. A matrix Gemm would copy first, by one thread, and slower than Add adds."""
    matrices = all(x is not None and x.shape is not None and rank(x) == 2 for x in product.inputs[:2])
    return matrices and rank(other) == 1


def of_adapters(product: ir.Node, other: ir.Value) -> bool:
    """Products with what is fed: those that end in an adapter's B. Others ONNX Runtime fuses as they stand."""
    b = product.inputs[1]
    return product.op_type == "MatMul" and b is not None and b.is_graph_input()


def _takes(product: ir.Value, other: ir.Value, add: ir.Node, wanted: Wanted) -> bool:
    """Whether `product` is one that only the sum reads and that adds nothing yet, and `other` fits."""
    node, total = product.producer(), add.outputs[0]
    if node is None or node.op_type not in _PRODUCTS or node.domain not in ("", "ai.onnx"):
        return False
    if not _read_by(product, add) or len(product.uses()) != 1 or _added(node) is not None:
        return False
    shape = _shape_of(node)
    if shape is None or other.shape is None or other.dtype != product.dtype or not known_equal(shape, dims(total)):
        return False
    if not wanted(node, other):
        return False
    vector = rank(total) == 2 and rank(other) == 1 and dims(other)[0] == dims(total)[1]
    return vector or known_equal(dims(other), dims(total))


def _added(product: ir.Node) -> ir.Value | None:
    """What a Gemm adds already."""
    return product.inputs[2] if len(product.inputs) > 2 else None


def _shape_of(product: ir.Node) -> tuple[Dim, ...] | None:
    """The shape of a product of rows `[..., in]` with a matrix."""
    a, b = product.inputs[:2]
    if a is None or b is None or a.shape is None or b.shape is None or rank(b) != 2 or rank(a) < 2:
        return None
    columns = dims(b)[1 - product.attributes.get_int("transB", 0)]
    if rank(a) > 2:
        return (*dims(a)[:-1], columns)
    return dims(a)[product.attributes.get_int("transA", 0)], columns


def _replace(op: OpBuilder, add: ir.Node, product: ir.Value, other: ir.Value) -> None:
    node, total = product.producer(), add.outputs[0]
    assert node is not None
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    attributes = {k: v for k, v in node.attributes.items() if k != "beta"}
    rows = _rows(op, a, node)
    sums = op.Gemm(rows, b, other if rank(total) == 2 else _rows(op, other, add), **attributes)
    sums.shape, sums.type = ir.Shape([None, dims(total)[-1]]), total.type
    made = annotate(sums if rank(total) == 2 else _like(op, sums, a, total), total)
    if total.is_graph_output():
        made.name, total.name = total.name, None
    total.replace_all_uses_with(made, replace_graph_outputs=True)


def _like(op: OpBuilder, sums: ir.Value, x: ir.Value, total: ir.Value) -> ir.Value:
    """The sums in the shape of `total`, whose place they take: it is that of x but for the features."""
    if named_by_inputs(op, total):
        return reshape_like(op, sums, total)
    leading = op.Shape(x, start=0, end=-1)
    return op.Reshape(sums, op.Concat(leading, [dims(total)[-1]], axis=0), allowzero=1)


def _rows(op: OpBuilder, x: ir.Value, reader: ir.Node) -> ir.Value:
    """`x` `[..., n]` as `[rows, n]`: computed so where it is a product, with its bias, for `reader` alone."""
    node = x.producer()
    if rank(x) == 2 or node is None or not _read_by(x, reader):
        return flatten_rows(op, x)
    if node.op_type == "Add":
        bias = next((v for v in node.inputs if v is not None and is_frozen(v)), None)
        inner = next((v for v in node.inputs if v is not None and v is not bias), None)
        if bias is None or bias.shape is None or rank(bias) > 1 or inner is None or not _is_product(inner, node):
            return flatten_rows(op, x)
        return op.Add(_rows(op, inner, node), bias)
    if not _is_product(x, reader):
        return flatten_rows(op, x)
    a, b = node.inputs
    assert a is not None
    return op.MatMul(_rows(op, a, node), b)


def _is_product(x: ir.Value, reader: ir.Node) -> bool:
    """Whether `x` is a product with a matrix, for `reader` alone, and neither is decoded here.

    ONNX Runtime fuses decoders with the products that read them, as they stand.
    """
    node = x.producer()
    if node is None or node.op_type != "MatMul" or not _read_by(x, reader):
        return False
    a, b = node.inputs
    if a is None or b is None or b.shape is None or rank(b) != 2:
        return False
    return not any((made := v.producer()) is not None and made.op_type == "DequantizeLinear" for v in (a, b))


def _read_by(value: ir.Value, reader: ir.Node) -> bool:
    """Whether `reader` alone reads the value."""
    return not value.is_graph_output() and all(node is reader for node, _ in value.uses())
