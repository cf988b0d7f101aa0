"""Operators that move elements and change none: the cotangent goes back where the element came from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import ints_of, operand, operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import (
    add_at_positions,
    annotate,
    axis_of,
    dims,
    positions_in,
    rank,
    reshape_like,
    shape_of,
    size_of,
    unbroadcast,
    zeros_like,
)

# --- the same elements in another shape


@gradient_rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X in another shape; dX = dY in the shape of X."""
    x = operands(node)[0]
    return (lambda: reshape_like(op, dy, x),)


@gradient_rule("Transpose")
def transpose(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X with its axes in the order perm; dX = dY with its axes in the inverse order."""
    (x,) = operands(node)
    perm = node.attributes.get_ints("perm", None) or range(rank(x))[::-1]
    inverse = sorted(range(rank(x)), key=lambda i: perm[i])
    return (lambda: op.Transpose(dy, perm=inverse),)


# --- parts of a whole


@gradient_rule("Concat")
def concat(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = [X₁ … Xₙ] along axis; dXᵢ = the part of dY that Xᵢ became."""
    xs = operands(node)
    axis = axis_of(node.attributes["axis"].as_int(), xs[0])

    def offset(i: int) -> list[int] | ir.Value:
        sizes = [dims(x)[axis] for x in xs[:i]]
        if all(isinstance(d, int) for d in sizes):
            return [sum(map(int, sizes))]  # pyright: ignore[reportArgumentType]
        return reduce(op.Add, [size_of(op, x, axis) for x in xs[:i]])

    def part(i: int) -> ir.Value:
        return annotate(op.Slice(dy, offset(i), offset(i + 1), [axis]), xs[i])

    return [partial(part, i) for i in range(len(xs))]


@gradient_rule("Split")
def split(op: OpBuilder, node: ir.Node, *dys: ir.Value | None) -> Thunks:
    """Y₁, …, Yₙ = parts of X along axis; dX = [dY₁ … dYₙ]."""
    x = operands(node)[0]
    axis = node.attributes.get_int("axis", 0)

    def dx() -> ir.Value:
        parts = [zeros_like(op, y) if dy is None else dy for y, dy in zip(node.outputs, dys, strict=True)]
        return annotate(op.Concat(*parts, axis=axis), x)

    return (dx,)


@gradient_rule("Slice")
def slice_(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X[start:end:step]; dX = 0, but dY at the positions that the slice reads.

    In steps of one the positions are a block, and dX is dY padded with zeros.
    """
    x, starts = operands(node)[:2]
    count = dims(starts)[0]
    first = list(range(count)) if isinstance(count, int) else None
    axes = first if operand(node, 3) is None else ints_of(operand(node, 3))
    steps = [1] if operand(node, 4) is None else ints_of(operand(node, 4))

    def block(axes: list[int]) -> ir.Value:
        return annotate(op.Pad(dy, _margins(op, x, dy, starts, axes), None, axes), x)

    def scattered() -> ir.Value:
        return add_at_positions(op, dy, op.Slice(positions_in(op, x), *node.inputs[1:]), x)

    return (partial(block, axes) if axes is not None and steps is not None and set(steps) == {1} else scattered,)


def _margins(op: OpBuilder, x: ir.Value, y: ir.Value, starts: ir.Value, axes: Sequence[int]) -> list[int] | ir.Value:
    """What a slice Y in steps of one leaves out of X before and after it, along each axis."""
    known = ints_of(starts)
    pairs = [(dims(x)[axis], dims(y)[axis]) for axis in axes]
    sizes = [(n, m) for n, m in pairs if isinstance(n, int) and isinstance(m, int)]
    if known is not None and len(sizes) == len(pairs):
        before = [min(i if i >= 0 else max(i + n, 0), n) for i, (n, _) in zip(known, sizes, strict=True)]
        return before + [n - m - i for i, (n, m) in zip(before, sizes, strict=True)]
    before, after = [], []
    for i, axis in enumerate(axes):
        n, m = size_of(op, x, axis), size_of(op, y, axis)
        start = op.Slice(starts, [i], [i + 1]) if known is None else op.Constant(value_ints=[known[i]])
        if known is None or known[i] < 0:
            start = op.Max(op.Where(op.Less(start, 0), op.Add(start, n), start), 0)
        before.append(op.Min(start, n))
        after.append(op.Sub(op.Sub(n, m), before[-1]))
    return op.Concat(*before, *after, axis=0)


@gradient_rule("Pad")
def pad(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X with a border, or with its border cut off where a pad is negative.

    constant: dX = dY without the border, and 0 in the border that was cut off; dC = Σ dY − Σ dX
    other modes: dX = dY summed to the positions that each element of Y repeats
    """
    x, pads, c, axes = node.inputs[0], node.inputs[1], operand(node, 2), operand(node, 3)
    assert x is not None and pads is not None
    mode, known = node.attributes.get_string("mode", "constant"), ints_of(pads)

    def inner() -> ir.Value:
        if known is None or min(known, default=0) < 0:
            return annotate(op.Pad(dy, op.Neg(pads), None, axes), x)
        before, _ = op.Split(pads, num_outputs=2, _outputs=2)
        sizes = shape_of(op, x) if axes is None else op.Gather(shape_of(op, x), axes)
        return annotate(op.Slice(dy, before, op.Add(before, sizes), *([] if axes is None else [axes])), x)

    def summed() -> ir.Value:
        return add_at_positions(op, dy, op.Pad(positions_in(op, x), pads, None, axes, mode=mode), x)

    def dc() -> ir.Value:
        sum_of_border = op.Sub(op.ReduceSum(dy, keepdims=0), op.ReduceSum(inner(), keepdims=0))
        return reshape_like(op, sum_of_border, c) if c is not None else sum_of_border

    return inner if mode == "constant" else summed, None, dc


@gradient_rule("CenterCropPad")
def center_crop_pad(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = the middle of X, or X in the middle of zeros, axis by axis; dX = the same of dY, to the sizes of X."""
    x, axes = operands(node)[0], node.attributes.get_ints("axes", None)

    def dx() -> ir.Value:
        if axes is None:
            return annotate(op.CenterCropPad(dy, shape_of(op, x)), x)
        return annotate(op.CenterCropPad(dy, op.Concat(*(size_of(op, x, a) for a in axes), axis=0), axes=axes), x)

    return (dx,)


# --- an order or a choice that is computed


@gradient_rule("ReverseSequence")
def reverse_sequence(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X with the first n elements of each sequence reversed; dX = the same of dY."""
    _, lengths = operands(node)
    return (lambda: op.ReverseSequence(dy, lengths, **node.attributes),)


@gradient_rule("Compress")
def compress(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X where C holds, along axis or of all elements; dX = dY there, else 0."""
    x, condition = operands(node)
    return (lambda: add_at_positions(op, dy, op.Compress(positions_in(op, x), condition, **node.attributes), x),)


# --- repeated and masked elements


@gradient_rule("Expand")
def expand(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X broadcast to a shape; dX = dY summed to the shape of X."""
    x = operands(node)[0]
    return (lambda: unbroadcast(op, dy, x),)


@gradient_rule("Tile")
def tile(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X repeated r times along each axis; dX = dY as [r₁, d₁, r₂, d₂, …], summed over every r."""
    x, repeats = operands(node)

    def dx() -> ir.Value:
        if rank(x) == 0:
            return dy
        pairs = op.Concat(op.Unsqueeze(repeats, [1]), op.Unsqueeze(shape_of(op, x), [1]), axis=1)
        apart = op.Reshape(dy, op.Reshape(pairs, [-1]))
        return annotate(op.ReduceSum(apart, list(range(0, 2 * rank(x), 2)), keepdims=0), x)

    return (dx,)


@gradient_rule("Trilu")
def trilu(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = a triangle of X, else 0; dX = the same triangle of dY, else 0."""
    k = operand(node, 1)
    return (lambda: op.Trilu(dy, k, upper=node.attributes.get_int("upper", 1)),)


# --- blocks of pixels as channels


@gradient_rule("SpaceToDepth")
def space_to_depth(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = b×b blocks of X as channels; dX = the channels of dY as blocks."""
    (x,) = operands(node)
    return (lambda: annotate(op.DepthToSpace(dy, blocksize=node.attributes["blocksize"].as_int()), x),)


@gradient_rule("DepthToSpace")
def depth_to_space(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = channels of X as b×b blocks; dX = the blocks of dY as channels.

    DCR: blocks outermost in the channels, as SpaceToDepth has them
    CRD: innermost: [N, C, H·b, W·b] → [N, C, H, b, W, b] → [N, C, b, b, H, W] → [N, C·b·b, H, W]
    """
    (x,) = operands(node)
    b = node.attributes["blocksize"].as_int()

    def crd() -> ir.Value:
        n, _, h, w = (size_of(op, x, axis) for axis in range(4))
        split_up = op.Reshape(dy, op.Concat(n, [-1], h, [b], w, [b], axis=0))
        return reshape_like(op, op.Transpose(split_up, perm=[0, 1, 3, 5, 2, 4]), x)

    if node.attributes.get_string("mode", "DCR") == "CRD":
        return (crd,)
    return (lambda: annotate(op.SpaceToDepth(dy, blocksize=b), x),)
