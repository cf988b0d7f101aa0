"""Rows to attention heads and back in one Gather each, in place of padding, a reshape and a transpose.

Tokens `[rows, heads·size]` become `[batch, heads, length, size]` by copying runs of `size` numbers to where attention
reads them: one pass over memory where there were three (docs/decisions/0017).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import dims, rank, size_of
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.passes.free_names import free_names

_SPLIT, _SPLIT_TURNED, _MERGED = [0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]


def gather_heads(model: ir.Model) -> ir.Model:
    """Rewrite Transpose(Reshape(Padded(Y))) as Heads(Y), and Rows(Reshape(Transpose(X))) as Merged(X), in place.

    Only where padding is left out; the passes before it have put the rows there (rows.py).
    """
    op = GraphBuilder(free_names(model.graph)).op
    for node in list(model.graph):
        made = _split(op, node) or _merge(op, node)
        if made is not None:
            (y,) = node.outputs
            made.shape, made.type = y.shape, y.type
            y.replace_all_uses_with(made, replace_graph_outputs=True)
    common.TopologicalSortPass()(model)
    return model


def _split(op: OpBuilder, node: ir.Node) -> ir.Value | None:
    """The transpose of heads `[batch, length, heads, size]`, taken from rows without padding."""
    perm = list(node.attributes.get_ints("perm", None) or []) if node.op_type == "Transpose" else []
    reshaped = _producer(node.inputs[0], "Reshape") if perm in (_SPLIT, _SPLIT_TURNED) else None
    padded = None if reshaped is None else _producer(reshaped.inputs[0], "Padded")
    if reshaped is None or padded is None or len(padded.inputs) < 3:
        return None
    whole, parts = dims(padded.outputs[0]), dims(reshaped.outputs[0])
    if len(parts) != 4 or parts[:2] != whole[:2] or not all(isinstance(d, int) for d in parts[2:]):
        return None
    heads = heads_of(op, operands(padded), [parts[0], parts[2], parts[1], parts[3]], zeros=False)
    return heads if perm == _SPLIT else op.Transpose(heads, perm=[0, 1, 3, 2])


def _merge(op: OpBuilder, node: ir.Node) -> ir.Value | None:
    """The rows without padding of heads `[batch, heads, length, size]` that were transposed back and joined."""
    if node.op_type != "Rows" or node.domain != DOMAIN or len(node.inputs) < 3:
        return None
    reshaped = _producer(node.inputs[0], "Reshape")
    turned = None if reshaped is None else _producer(reshaped.inputs[0], "Transpose")
    if reshaped is None or turned is None or list(turned.attributes.get_ints("perm", None) or []) != _MERGED:
        return None
    x, whole = turned.inputs[0], dims(reshaped.outputs[0])
    if x is None or x.shape is None or rank(x) != 4 or (dims(x)[0], dims(x)[2]) != whole[:2]:
        return None
    if not all(isinstance(d, int) for d in (dims(x)[1], dims(x)[3])):
        return None
    return merged_of(op, (x, *operands(node)[1:]))


def _producer(x: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if x is None or x.shape is None else x.producer()
    return node if node is not None and node.op_type == op_type and node.domain in ("", DOMAIN) else None


def heads_of(op: OpBuilder, inputs: Sequence[ir.Value], shape: Sequence[int | str | None], zeros: bool) -> ir.Value:
    """Heads of (rows, kept, places)."""
    made = op.builder.opset(DOMAIN, 1).Heads(*inputs, zeros=int(zeros))
    made.shape, made.type = ir.Shape(list(shape)), inputs[0].type
    return made


def merged_of(op: OpBuilder, inputs: Sequence[ir.Value]) -> ir.Value:
    """Merged of (heads, kept, places)."""
    x, kept, _ = inputs
    made = op.builder.opset(DOMAIN, 1).Merged(*inputs)
    heads, size = dims(x)[1], dims(x)[3]
    assert isinstance(heads, int) and isinstance(size, int)
    made.shape, made.type = ir.Shape([dims(kept)[0], heads * size]), x.type
    return made


@gradient_rule("Heads", domain=DOMAIN)
def heads(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = the rows X as heads; dX = dY as rows. What stands at padding has no gradient: attention masks it."""
    return (lambda: merged_of(op, (dy, *operands(node)[1:])),)


@gradient_rule("Merged", domain=DOMAIN)
def merged(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = the heads X as rows, without padding; dX = dY as heads, zeros at padding."""
    x, *places = operands(node)
    return (lambda: heads_of(op, (dy, *places), dims(x), zeros=True),)


class Heads:
    """Heads(Y `[rows, heads·size]`, kept, places), `[batch, heads, length, size]`, in standard ONNX.

    With `zeros` the places of padding are zeros; otherwise they hold what some row has, for attention masks them.
    """

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        y, _, places = operands(node)
        out, zeros = node.outputs[0], node.attributes.get_int("zeros", 0)
        _, count, _, size = dims(out)
        grid = op.Reshape(places, op.Concat(size_of(op, out, 0), [1, -1], axis=0))
        of_head = op.Unsqueeze(op.Range(0, count, 1), [1])
        runs = op.Reshape(y, [-1, size])
        first = op.Add(op.Mul(op.Sub(grid, 1), count), of_head)
        if zeros:
            runs = op.Concat(op.Constant(value=ir.tensor([[0.0] * int(str(size))], dtype=y.dtype)), runs, axis=0)
            first = op.Add(first, 1)
        return (op.Gather(runs, op.Max(first, 0), axis=0),)


class Merged:
    """Merged(X `[batch, heads, length, size]`, kept, places), `[rows, heads·size]`, in standard ONNX.

    The token at k = b·length + l has its head h at (b·heads + h)·length + l = k + ((heads − 1)·b + h)·length.
    """

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        x, kept, _ = operands(node)
        _, count, _, size = dims(x)
        length = size_of(op, x, 2)
        column = op.Unsqueeze(kept, [1])
        row = op.Mul(op.Div(column, length), int(str(count)) - 1)
        places = op.Add(column, op.Mul(op.Add(row, op.Range(0, count, 1)), length))
        runs = op.Gather(op.Reshape(x, [-1, size]), places, axis=0)
        return (op.Reshape(runs, [-1, int(str(count)) * int(str(size))]),)


LOWERED = {"Heads": Heads(), "Merged": Merged()}
