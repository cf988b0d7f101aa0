"""Reading and writing at indices: what was read is added back where it was read.

The operators take negative indices, counted from the end; ScatterElements and ScatterND take the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

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
    indicator,
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


# --- writing. If reduction `none` writes twice to one place, the result is undefined, and so is the gradient


@gradient_rule("ScatterElements")
def scatter_elements(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X with U written at I along axis, added, multiplied, or the extremum of both; see `_written`."""
    axis = node.attributes.get_int("axis", 0)
    return _written(op, node, dy, partial(op.ScatterElements, axis=axis), partial(op.GatherElements, axis=axis))


@gradient_rule("ScatterND")
def scatter_nd(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X with U written at the index tuples I, added, multiplied, or the extremum of both; see `_written`."""
    return _written(op, node, dy, op.ScatterND, op.GatherND)


def _written(
    op: OpBuilder, node: ir.Node, dy: ir.Value, scatter: Callable[..., ir.Value], gather: Callable[..., ir.Value]
) -> Thunks:
    """The gradients of Y = X with U written at I; [I] reads at I, and Π, Σ go over the updates of a place.

    none: dX = dY, with 0 where written; dU = dY[I]
    add:  dX = dY; dU = dY[I]
    mul:  Y = X∘ΠU; dX = dY∘ΠU; dU = (dY∘X)[I]∘Π of the other updates, which is found as in ReduceProd
    max, min: m = [X = Y], n = [U = Y[I]]; dX = S∘m, dU = S[I]∘n, S = dY/(m + Σn): equals share the cotangent
    """
    x, indices, u = operands(node)
    (y,) = node.outputs
    reduction = node.attributes.get_string("reduction", "none") or "none"

    @cache
    def zeros() -> tuple[ir.Value, ir.Value]:
        """Z = [U = 0], and U with 1 instead of 0."""
        zero = indicator(op, op.Equal(u, 0.0), u)
        return zero, op.Add(u, zero)

    def others() -> ir.Value:
        """P/(U + Z)∘([z = 0] + [z = 1]∘Z), P the product of what is not 0 and z = ΣZ."""
        zero, nonzero = zeros()
        p = gather(scatter(_ones_like(op, x), indices, nonzero, reduction="mul"), indices)
        z = gather(scatter(zeros_like(op, x), indices, zero, reduction="add"), indices)
        none, one = (indicator(op, op.Equal(z, count), u) for count in (0.0, 1.0))
        return op.Mul(op.Div(p, nonzero), op.Add(none, op.Mul(one, zero)))

    @cache
    def equal() -> tuple[ir.Value, ir.Value]:
        return indicator(op, op.Equal(x, y), x), indicator(op, op.Equal(u, gather(y, indices)), u)

    @cache
    def share() -> ir.Value:
        m, n = equal()
        return op.Div(dy, scatter(m, indices, n, reduction="add"))

    match reduction:
        case "none":
            return lambda: scatter(dy, indices, zeros_like(op, u)), None, lambda: gather(dy, indices)
        case "add":
            return lambda: dy, None, lambda: gather(dy, indices)
        case "mul":
            return (
                lambda: op.Mul(dy, scatter(_ones_like(op, x), indices, u, reduction="mul")),
                None,
                lambda: op.Mul(gather(op.Mul(dy, x), indices), others()),
            )
        case "max" | "min":
            return (
                lambda: op.Mul(share(), equal()[0]),
                None,
                lambda: op.Mul(gather(share(), indices), equal()[1]),
            )
    raise refuse(node, f"has reduction={reduction!r}")


def _ones_like(op: OpBuilder, x: ir.Value) -> ir.Value:
    return annotate(filled(op, 1.0, shape_of(op, x), x), x)


@gradient_rule("TopK")
def top_k(op: OpBuilder, node: ir.Node, dy: ir.Value, di: None = None) -> Thunks:
    """Y, I = the k largest elements of X along axis and their places; dX = 0, but dY at I."""
    x, indices = operands(node)[0], node.outputs[1]
    axis = node.attributes.get_int("axis", -1)
    return (lambda: op.ScatterElements(zeros_like(op, x), indices, dy, axis=axis),)


@gradient_rule("OneHot")
def one_hot(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = b at the place I along axis, else a, of V = [a, b]; dV = [Σ dY∘(1 − H), Σ dY∘H], H = Y for V = [0, 1]."""
    indices, depth, v = operands(node)

    def dv() -> ir.Value:
        h = op.OneHot(indices, depth, op.CastLike(op.Constant(value_floats=[0.0, 1.0]), v), **node.attributes)
        a, b = (op.ReduceSum(op.Mul(dy, hot), keepdims=0) for hot in (op.Sub(1.0, h), h))
        return annotate(op.Concat(*(op.Reshape(d, [1]) for d in (a, b)), axis=0), v)

    return None, None, dv


@gradient_rule("TensorScatter")
def tensor_scatter(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X with U written along axis from the place I[b] of each batch b on; dX = dY, with 0 there; dU = dY there.

    circular: what stands beyond the end goes to the beginning.
    """
    x, u, *start = operands(node)
    axis = axis_of(node.attributes.get_int("axis", -2), x)

    def du() -> ir.Value:
        length = op.Squeeze(size_of(op, u, axis), [0])
        places = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1))
        places = op.Unsqueeze(places, [a for a in range(rank(x)) if a != axis])
        if start:
            places = op.Add(places, op.Unsqueeze(*start, list(range(1, rank(x)))))
        if node.attributes.get_string("mode", "linear") == "circular":
            places = op.Mod(places, size_of(op, x, axis))
        return annotate(op.GatherElements(dy, op.Expand(places, shape_of(op, u)), axis=axis), u)

    return lambda: op.TensorScatter(dy, zeros_like(op, u), *start, **node.attributes), du
