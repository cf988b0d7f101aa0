"""Inference adds an adapter inside its last product: y + (x·A)·B is one Gemm, whose C is the base's y.

A MatMul and an Add over the whole output would cost their dispatch and their passes over memory also where the rank is
0 (docs/decisions/0016). Gemm wants matrices, so the frozen product moves to rows too: views, no copies.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.frozen import is_frozen
from edgelora_tools.gradients.shapes import annotate, dims, flatten_rows, named_by_inputs, rank, reshape_like
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.methods.lora import OP_TYPE


def add_in_product(model: ir.Model, op: OpBuilder) -> ir.Model:
    """Replace every Add(y, Lora(x, A, B)) by Gemm(x·A, B, y) on rows. Convolutions' adapters are none and stay."""
    for node in list(model.graph):
        delta = _delta(node)
        if delta is not None:
            _replace(op, node, delta)
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return model


def _delta(node: ir.Node) -> ir.Node | None:
    """The Lora whose output `node` adds, if nothing else reads it."""
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return None
    for x in node.inputs:
        delta = None if x is None else x.producer()
        if x is not None and delta is not None and (delta.domain, delta.op_type) == (DOMAIN, OP_TYPE):
            return delta if _read_by(x, node) and node.outputs[0].shape is not None else None
    return None


def _replace(op: OpBuilder, add: ir.Node, delta: ir.Node) -> None:
    x, a, b = delta.inputs
    y = next(v for v in add.inputs if v is not None and v.producer() is not delta)
    adapted = add.outputs[0]
    assert x is not None and a is not None and b is not None
    rows = flatten_rows(op, x)
    sums = op.Gemm(op.MatMul(rows, a), b, _in_rows(op, y, x, rows, add))
    sums.shape = ir.Shape([None, dims(adapted)[-1]])
    new = sums if len(dims(adapted)) == 2 else _like(op, sums, x, adapted)
    new = annotate(new, adapted)
    new.name = adapted.name if adapted.is_graph_output() else new.name
    adapted.replace_all_uses_with(new, replace_graph_outputs=True)


def _like(op: OpBuilder, sums: ir.Value, x: ir.Value, adapted: ir.Value) -> ir.Value:
    """The sums in the shape of `adapted`, whose place they take: it is that of x but for the features."""
    if named_by_inputs(op, adapted):
        return reshape_like(op, sums, adapted)
    leading = op.Shape(x, start=0, end=-1)
    return op.Reshape(sums, op.Concat(leading, [dims(adapted)[-1]], axis=0), allowzero=1)


def _in_rows(op: OpBuilder, y: ir.Value, x: ir.Value, rows: ir.Value, reader: ir.Node) -> ir.Value:
    """The base's y `[..., out]` as `[rows, out]`: computed so where it is a product of x and its bias for us alone."""
    if rows is x:
        return y
    product, bias = y.producer(), None
    if product is not None and product.op_type == "Add" and _read_by(y, reader):
        bias = next((v for v in product.inputs if v is not None and is_frozen(v)), None)
        inner = next((v for v in product.inputs if v is not None and v is not bias), None)
        if bias is None or bias.shape is None or len(bias.shape) > 1 or inner is None or not _read_by(inner, product):
            return flatten_rows(op, y)
        product = inner.producer()
    elif not _read_by(y, reader):
        return flatten_rows(op, y)
    weight = None if product is None or product.op_type != "MatMul" else product.inputs[1]
    if product is None or product.inputs[0] is not x or weight is None or rank(weight) != 2 or _decoded(x, weight):
        return flatten_rows(op, y)
    base = op.MatMul(rows, weight)
    return base if bias is None else op.Add(base, bias)


def _read_by(value: ir.Value, reader: ir.Node) -> bool:
    """Whether `reader` alone reads the value."""
    return not value.is_graph_output() and all(node is reader for node, _ in value.uses())


def _decoded(*values: ir.Value) -> bool:
    """Whether a value is decoded here: ONNX Runtime fuses decoders with the products that read them, as they stand."""
    return any((node := value.producer()) is not None and node.op_type == "DequantizeLinear" for value in values)
