"""Pools over any number of axes. X is [N, C, size…], Y [N, C, out…]; a place sees a window of X."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import (
    add_at_positions,
    annotate,
    dims,
    expand_like,
    filled,
    indicator,
    size_of,
)
from edgelora_tools.gradients.windows import (
    Window,
    image_axes,
    numpy_type,
    pad_image,
    sizes_of,
    spread,
    tile,
    window_of,
)


@gradient_rule("MaxPool")
def max_pool(op: OpBuilder, node: ir.Node, dy: ir.Value, di: None = None) -> Thunks:
    """Y = max of X over the window, I = where it stands.

    dX = 0, plus dY at I; where windows tile the image, [X = Y]∘dY, each spread over its tile, of which equal
    elements have equal parts
    """
    (x,), y = operands(node), node.outputs[0]
    window = window_of(op, node, x)
    sizes, ceil = dims(x)[2:], node.attributes.get_int("ceil_mode", 0)
    whole = all(isinstance(n, int) and n % k == 0 for n, k in zip(sizes, window.kernel, strict=True))

    def shares() -> ir.Value:
        mask = indicator(op, op.Equal(x, tile(op, y, x, window)), dy)
        ties = op.AveragePool(mask, kernel_shape=window.kernel, strides=window.strides)
        share = op.Div(dy, op.Mul(ties, float(prod(window.kernel))))
        return op.Mul(mask, tile(op, annotate(share, y), x, window))

    def scattered() -> ir.Value:
        return add_at_positions(op, dy, _positions_of_maxima(op, node), x)

    return (shares if window.tiles and window.unpadded and (whole or not ceil) else scattered,)


def _positions_of_maxima(op: OpBuilder, node: ir.Node) -> ir.Value:
    """The flat positions in X of the maxima: the node's own second output, unless it counts by columns."""
    if node.attributes.get_int("storage_order", 0):
        own = {k: v for k, v in node.attributes.items() if k != "storage_order"}
        return op.MaxPool(node.inputs[0], _outputs=2, **{k: v.value for k, v in own.items()})[1]
    if len(node.outputs) == 1:
        node.resize_outputs(2)
    y, positions = node.outputs
    if not positions.name:
        positions.name = f"{y.name}.positions"
    positions.dtype, positions.shape = ir.DataType.INT64, y.shape
    return positions


@gradient_rule("AveragePool")
def average_pool(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = Σ X over the window / count; dX = dY/count, spread over the window."""
    (x,) = operands(node)
    window = window_of(op, node, x)
    include, ceil = (node.attributes.get_int(name, 0) for name in ("count_include_pad", "ceil_mode"))

    def dx() -> ir.Value:
        if not ceil and (include or window.unpadded):
            return spread(op, dy, x, window, 1 / prod(window.kernel))
        count = _counts(op, dy, x, window, bool(include))
        return spread(op, annotate(op.Div(dy, count), dy), x, window)

    return (dx,)


def _counts(op: OpBuilder, dy: ir.Value, x: ir.Value, window: Window, include_padding: bool) -> ir.Value:
    """How many pixels of X, or of the padded X, every place sees: [1, 1, out…], the sums over an image of ones."""
    ones = filled(op, 1.0, op.Concat([1, 1], sizes_of(op, x), axis=0), dy)
    ones.shape = ir.Shape([1, 1, *dims(x)[2:]])
    ones = pad_image(op, ones, window.before, window.after, 1.0 if include_padding else None)
    overhang = [s - 1 for s in window.strides]
    kernel = op.Constant(value=ir.tensor(np.ones([1, 1, *window.kernel], numpy_type(dy))))
    count = op.Conv(
        ones,
        kernel,
        pads=[0] * len(overhang) + overhang,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
    )
    return op.Slice(count, [0] * len(overhang), sizes_of(op, dy), image_axes(x))


@gradient_rule("LpPool")
def lp_pool(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = (Σ |X|ᵖ over the window)^(1/p); dX = X∘|X|ᵖ⁻²∘S, S = dY∘Y¹⁻ᵖ spread over the window. 0 where Y is 0."""
    (x,), (y,) = operands(node), node.outputs
    window, p = window_of(op, node, x), node.attributes.get_int("p", 2)
    return (lambda: op.Mul(_power_slope(op, x, p), spread(op, _norm_slope(op, dy, y, p), x, window)),)


def _power_slope(op: OpBuilder, x: ir.Value, p: int) -> ir.Value:
    """X∘|X|ᵖ⁻², the slope of |X|ᵖ/p."""
    if p == 1:
        return op.Sign(x)
    if p == 2:
        return x
    return op.Mul(x, op.Abs(x) if p == 3 else op.Pow(op.Abs(x), float(p - 2)))


def _norm_slope(op: OpBuilder, dy: ir.Value, y: ir.Value, p: int) -> ir.Value:
    """dY∘Y¹⁻ᵖ, finite where Y is 0."""
    if p == 1:
        return dy
    safe = op.Add(y, indicator(op, op.Equal(y, 0.0), y))
    return annotate(op.Div(dy, safe if p == 2 else op.Pow(safe, float(p - 1))), dy)


@gradient_rule("GlobalAveragePool")
def global_average_pool(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = mean of a channel; dX = dY/count."""
    (x,) = operands(node)

    def dx() -> ir.Value:
        sizes = dims(x)[2:]
        known = [d for d in sizes if isinstance(d, int)]
        count = op.CastLike(op.ReduceProd(sizes_of(op, x), keepdims=0), dy) if len(known) < len(sizes) else prod(known)
        return expand_like(op, op.Div(dy, count), x)

    return (dx,)


@gradient_rule("GlobalMaxPool")
def global_max_pool(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = max of a channel; dX = [X = Y]∘dY, of which equal elements have equal parts."""
    (x,), (y,) = operands(node), node.outputs

    def dx() -> ir.Value:
        mask = indicator(op, op.Equal(x, y), dy)
        return op.Mul(mask, op.Div(dy, op.ReduceSum(mask, image_axes(x), keepdims=1)))

    return (dx,)


@gradient_rule("GlobalLpPool")
def global_lp_pool(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = (Σ |X|ᵖ of a channel)^(1/p); dX = X∘|X|ᵖ⁻²∘(dY∘Y¹⁻ᵖ). 0 where Y is 0."""
    (x,), (y,) = operands(node), node.outputs
    p = node.attributes.get_int("p", 2)
    return (lambda: op.Mul(_power_slope(op, x, p), _norm_slope(op, dy, y, p)),)


@gradient_rule("MaxUnpool")
def max_unpool(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = 0, with X written at the flat positions I; dX = dY at I."""
    x, positions = operands(node)[:2]
    return (lambda: annotate(op.Gather(op.Reshape(dy, [-1]), positions), x),)


@gradient_rule("MaxRoiPool")
def max_roi_pool(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y [R, C, rows, columns] = max of the region's image of X over each bin; dX = 0, plus dY where the max stands.

    That is found by columns first, [R, C, H, columns], then by rows. An empty bin is 0, and has no gradient.
    """
    x, rois = operands(node)
    rows, columns = node.attributes.get_ints("pooled_shape", [])
    scale = node.attributes.get_float("spatial_scale", 1.0)

    def dx() -> ir.Value:
        image = op.Cast(op.Slice(rois, [0], [1], [1]), to=ir.DataType.INT64)
        in_column = _bins(op, rois, 1, scale, columns, size_of(op, x, 3))
        in_row = _bins(op, rois, 2, scale, rows, size_of(op, x, 2))
        regions = op.Unsqueeze(op.Gather(x, op.Squeeze(image, [1])), [3])
        by_column = op.Where(op.Unsqueeze(in_column, [1, 2]), regions, -np.inf)
        tops = op.Unsqueeze(op.ReduceMax(by_column, [4], keepdims=0), [2])
        by_row = op.Where(op.Unsqueeze(in_row, [1, 4]), tops, -np.inf)
        row = op.ArgMax(by_row, axis=3, keepdims=0)
        column = op.GatherElements(op.ArgMax(by_column, axis=4, keepdims=0), row, axis=2)
        height, width = size_of(op, x, 2), size_of(op, x, 3)
        channels = size_of(op, x, 1)
        channel = op.Range(op.Constant(value_int=0), op.Squeeze(channels, [0]), op.Constant(value_int=1))
        plane = op.Unsqueeze(op.Add(op.Mul(image, channels), channel), [2, 3])
        positions = op.Add(op.Mul(op.Add(op.Mul(plane, height), row), width), column)
        seen = op.Mul(_any(op, in_row, dy, [1, 3]), _any(op, in_column, dy, [1, 2]))
        return add_at_positions(op, op.Mul(dy, seen), positions, x)

    return (dx,)


def _bins(op: OpBuilder, rois: ir.Value, axis: int, scale: float, bins: int, size: ir.Value) -> ir.Value:
    """Which pixels each bin of a region covers, [R, bins, size]. A region's corners are rounded, half away from 0."""
    first, last = (_rounded(op, op.Mul(op.Slice(rois, [i], [i + 1], [1]), scale)) for i in (axis, axis + 2))
    length = op.Max(op.Add(op.Sub(last, first), 1.0), op.CastLike(1.0, rois))
    step = op.Div(length, float(bins))
    numbers = np.arange(bins, dtype=numpy_type(rois))
    start = op.Add(first, op.Floor(op.Mul(step, op.Constant(value=ir.tensor(numbers)))))
    end = op.Add(first, op.Ceil(op.Mul(step, op.Constant(value=ir.tensor(numbers + 1)))))
    pixels = op.CastLike(op.Range(op.Constant(value_int=0), op.Squeeze(size, [0]), op.Constant(value_int=1)), rois)
    return op.And(op.GreaterOrEqual(pixels, op.Unsqueeze(start, [2])), op.Less(pixels, op.Unsqueeze(end, [2])))


def _rounded(op: OpBuilder, x: ir.Value) -> ir.Value:
    return op.Mul(op.Sign(x), op.Floor(op.Add(op.Abs(x), 0.5)))


def _any(op: OpBuilder, covered: ir.Value, dy: ir.Value, axes: list[int]) -> ir.Value:
    """1 for the bins that cover a pixel, with new axes."""
    return op.Unsqueeze(op.ReduceMax(indicator(op, covered, dy), [2], keepdims=0), axes)
