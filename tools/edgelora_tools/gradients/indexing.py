"""Reading and writing at indices: what was read is added back where it was read.

The operators take negative indices, counted from the end; ScatterElements and ScatterND take the same.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import ints_of, operands, refuse
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import (
    add_at_positions,
    annotate,
    axis_of,
    dims,
    filled,
    positions_in,
    rank,
    shape_of,
    size_of,
    zeros_like,
)


@gradient_rule("Gather")
def gather(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X[…, I, …] along axis; dX = 0, plus dY at I.

    One position, as of a classifier's first token, makes dX a padded dY. Otherwise the rows are scattered
    with the axis in front: [I…, before, after] → [axis, before, after] → [before, axis, after].
    """
    x, indices = operands(node)
    axis = axis_of(node.attributes.get_int("axis", 0), x)
    size, known = dims(x)[axis], ints_of(indices)

    def one(i: int) -> ir.Value:
        row = op.Unsqueeze(dy, [axis]) if rank(indices) == 0 else dy
        if isinstance(size, int):
            pads = [i % size, size - 1 - i % size]
        elif i >= 0:
            pads = op.Concat([i], op.Sub(size_of(op, x, axis), [i + 1]), axis=0)
        else:
            pads = op.Concat(op.Add(size_of(op, x, axis), [i]), [-i - 1], axis=0)
        return annotate(op.Pad(row, pads, None, [axis]), x)

    def many() -> ir.Value:
        q = rank(indices)
        front = [*range(axis, axis + q), *range(axis), *range(axis + q, rank(dy))]
        order = [axis, *(a for a in range(rank(x)) if a != axis)]
        back = sorted(range(rank(x)), key=lambda a: order[a])
        shape = shape_of(op, x)
        if axis:
            shape = op.Gather(shape, order)
        zeros = filled(op, 0.0, shape, dy)
        rows = dy if axis == 0 else op.Transpose(dy, perm=front)
        dx = op.ScatterND(zeros, op.Unsqueeze(indices, [-1]), rows, reduction="add")
        return annotate(dx if axis == 0 else op.Transpose(dx, perm=back), x)

    if known is not None and len(known) == 1 and rank(indices) < 2:
        return (lambda: one(known[0]),)
    return (many,)


@gradient_rule("GatherElements")
def gather_elements(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X at I along axis, element by element; dX = 0, plus dY at I."""
    x, indices = operands(node)
    axis = node.attributes.get_int("axis", 0)
    return (lambda: op.ScatterElements(zeros_like(op, x), indices, dy, axis=axis, reduction="add"),)


@gradient_rule("GatherND")
def gather_nd(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X at the index tuples I; dX = 0, plus dY at I."""
    x, indices = operands(node)
    batch = node.attributes.get_int("batch_dims", 0)
    if batch:
        return (lambda: add_at_positions(op, dy, op.GatherND(positions_in(op, x), indices, batch_dims=batch), x),)
    return (lambda: op.ScatterND(zeros_like(op, x), indices, dy, reduction="add"),)


@gradient_rule("ScatterElements")
def scatter_elements(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X with U written at I along axis, or added; dX = dY, with 0 where written; dU = dY at I."""
    _, indices, u = operands(node)
    axis, reduction = node.attributes.get_int("axis", 0), _reduction(node)

    def dx() -> ir.Value:
        return dy if reduction == "add" else op.ScatterElements(dy, indices, zeros_like(op, u), axis=axis)

    return dx, None, lambda: op.GatherElements(dy, indices, axis=axis)


@gradient_rule("ScatterND")
def scatter_nd(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X with U written at the index tuples I, or added; dX = dY, with 0 where written; dU = dY at I."""
    _, indices, u = operands(node)
    reduction = _reduction(node)

    def dx() -> ir.Value:
        return dy if reduction == "add" else op.ScatterND(dy, indices, zeros_like(op, u))

    return dx, None, lambda: op.GatherND(dy, indices)


def _reduction(node: ir.Node) -> str:
    reduction = node.attributes.get_string("reduction", "none") or "none"
    if reduction not in ("none", "add"):
        raise refuse(node, f"has reduction={reduction!r}")
    return reduction


@gradient_rule("TopK")
def top_k(op: OpBuilder, node: ir.Node, dy: ir.Value, di: None = None) -> Thunks:
    """Y, I = the k largest elements of X along axis and their places; dX = 0, but dY at I."""
    x, indices = operands(node)[0], node.outputs[1]
    axis = node.attributes.get_int("axis", -1)
    return (lambda: op.ScatterElements(zeros_like(op, x), indices, dy, axis=axis),)
