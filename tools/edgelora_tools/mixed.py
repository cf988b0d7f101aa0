"""The graph for mixed batches: adapters side by side in the inputs, and for every row the number of its own.

A `[adapters, in, r]`, B `[adapters, r, out]`, the head `[adapters, outputs, features]`: with k = adapter_index_i,
y_i = base(x)_i + (x_i·A_k)·B_k. Smaller ranks are padded with zeros, which is exact. (Batches of many adapters: Punica,
arXiv:2310.18547, S-LoRA, arXiv:2311.03285.)
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora.manifest import MIXED_INDEX, Head
from edgelora_tools.gradients.shapes import annotate, dims, rank
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.methods.lora import OP_TYPE
from edgelora_tools.passes.row_wise import viewed


def stack_adapters(
    model: ir.Model,
    op: OpBuilder,
    inputs: Sequence[ir.Value],
    head: Head | None,
    prediction: ir.Value | None,
    batch: str,
) -> bool:
    """Give the adapter's `inputs` a first axis of adapters, and pick each row's by an input `adapter_index` `[batch]`.

    Returns False, and changes nothing, where rows cannot have their own: at a convolution (ONNX fixes the number of its
    groups, so there is none with a kernel per row), at a head of maps, which is one, and where batch and positions are
    one axis, unless this is a view of them.
    """
    if head is not None and head.per == "pixel":
        return False
    deltas = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]
    features = None if head is None or prediction is None else _features(prediction, head)
    rows = [_of_batch(node.inputs[0], batch) for node in deltas] + ([] if head is None else [features])
    reached = {x for node in deltas for x in node.inputs[1:]} | {x for x in inputs if head and x.name in _names(head)}
    if set(inputs) - reached or any(x is None or x.shape is None or dims(x)[0] != batch for x in rows):
        return False
    index = op.builder.input(MIXED_INDEX, ir.DataType.INT64, [batch])
    for node, x in zip(deltas, rows, strict=False):
        assert x is not None
        _stack_delta(op, node, x, index)
    if head is not None and prediction is not None and features is not None:
        _stack_head(op, prediction, features, head, inputs, index)
    for x in inputs:
        x.shape = ir.Shape(["adapters", *dims(x)])
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return True


def _names(head: Head) -> tuple[str, str]:
    return head.weight, head.bias


def _features(prediction: ir.Value, head: Head) -> ir.Value | None:
    """What the head reads: `[batch, features]`, or `[batch, ..., features]` per token."""
    product = prediction.producer()
    while product is not None and product.op_type != "Gemm":
        product = None if product.inputs[0] is None else product.inputs[0].producer()
    x = None if product is None else product.inputs[0]
    rows = None if x is None else x.producer()
    return rows.inputs[0] if head.per == "token" and rows is not None else x


def _of_batch(x: ir.Value | None, batch: str) -> ir.Value | None:
    """`x`, or the tokens `[batch, positions, features]` that it is a view of."""
    node = None if x is None or x.shape is None or dims(x)[0] == batch else x.producer()
    source = None if node is None else viewed(node)
    return x if source is None or rank(source) != 3 or dims(source)[0] != batch else source


def _stack_delta(op: OpBuilder, node: ir.Node, x: ir.Value, index: ir.Value) -> None:
    """Y = (X·A_k)·B_k, one product of matrices a row of the batch, for what the node's input is a view of."""
    _, a, b = node.inputs
    y = node.outputs[0]
    assert a is not None and b is not None
    inner = list(range(1, rank(x) - 2))
    a, b = (op.Unsqueeze(m, inner) if inner else m for m in (op.Gather(a, index), op.Gather(b, index)))
    if rank(x) == 2:
        new = op.Squeeze(op.MatMul(op.MatMul(op.Unsqueeze(x, [1]), a), b), [1])
    else:
        new = op.MatMul(op.MatMul(x, a), b)
    if rank(y) != rank(x):
        new = op.Reshape(new, [-1, dims(y)[1]])
    y.replace_all_uses_with(annotate(new, y))


def _stack_head(
    op: OpBuilder, prediction: ir.Value, x: ir.Value, head: Head, inputs: Sequence[ir.Value], index: ir.Value
) -> None:
    """logits_i = W_k·x_i + bias_k."""
    by_name = {x.name: x for x in inputs}
    weight, bias = (op.Gather(by_name[name], index) for name in _names(head))
    if rank(x) == 2:
        logits = op.Add(op.Squeeze(op.MatMul(weight, op.Unsqueeze(x, [2])), [2]), bias)
    else:
        axes = list(range(1, rank(x) - 1))
        order = [0, *(axis + 1 for axis in axes[1:]), len(axes) + 1, len(axes)]
        wide = op.Unsqueeze(weight, axes[1:]) if len(axes) > 1 else weight
        logits = op.Add(op.MatMul(x, op.Transpose(wide, perm=order)), op.Unsqueeze(bias, axes))
    new = annotate(logits, prediction)
    if prediction.is_graph_output():
        new.name, prediction.name = prediction.name, None
    prediction.replace_all_uses_with(new, replace_graph_outputs=True)
