"""RoiAlign: samples in the bins of regions of an image, averaged or the largest of each bin."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.sampling import (
    channels_last,
    count_up,
    images_of,
    indices,
    numbers,
    points_first,
    type_of,
    zero_rows,
)
from edgelora_tools.gradients.shapes import annotate, indicator, size_of


@dataclass(frozen=True)
class _Samples:
    """The samples of R regions along one axis of an image, `size` pixels long: G in each of B bins.

    `at` `[R, B, G]` are their coordinates, brought inside; `inside` is 0 for those that were far outside,
    and `used` 0 for those beyond the `count` of their region, which is `[R, 1, 1]` or `[1, 1, 1]`.
    """

    size: ir.Value
    at: ir.Value
    inside: ir.Value
    used: ir.Value
    count: ir.Value


@gradient_rule("RoiAlign")
def roi_align(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y[r] = A_y[r]·X[b(r)]·A_x[r]ᵀ for every channel, the mean of bilinear samples.

    dX[n] = Σᵣ [b(r) = n] A_y[r]ᵀ·dY[r]·A_x[r]

    With mode=max, Y is the largest of w·X over the four pixels of all samples of a bin (so the operator
    is defined), and dX is w·dY at that pixel. Regions have no gradient, as in torch.
    """
    x, rois, images = operands(node)

    def mean() -> ir.Value:
        a_y, a_x = (_matrix(op, _samples(op, node, x, rois, axis)) for axis in (2, 3))
        across = op.MatMul(dy, op.Unsqueeze(a_x, [1]))  # [R, C, B_y, W]
        number = op.Unsqueeze(indices(op, size_of(op, x, 0)), [1])
        of = indicator(op, op.Equal(number, op.Cast(images, to=ir.DataType.INT64)), dy)  # [N, R]
        down = op.Mul(op.Unsqueeze(of, [1, 3]), op.Transpose(a_y, perm=[2, 0, 1]))  # [N, H, R, B_y]
        n, c, h, w = (size_of(op, x, a) for a in range(4))
        bins = op.Mul(op.Shape(rois, start=0, end=1), size_of(op, dy, 2))
        down = op.Reshape(down, op.Concat(op.Mul(n, h), bins, axis=0), allowzero=1)
        across = op.Transpose(across, perm=[0, 2, 1, 3])
        across = op.Reshape(across, op.Concat(bins, op.Mul(c, w), axis=0), allowzero=1)
        image = op.Reshape(op.MatMul(down, across), op.Concat(n, h, c, w, axis=0))
        return annotate(op.Transpose(image, perm=[0, 2, 1, 3]), x)

    def largest() -> ir.Value:
        down, across = (_samples(op, node, x, rois, axis) for axis in (2, 3))
        (y, w_y, used_y), (x_, w_x, used_x) = _corners(op, down), _corners(op, across)

        def combine(a: ir.Value, b: ir.Value) -> ir.Value:
            """`[R, B_y, K_y]` times `[R, B_x, K_x]` as `[R, B_y·B_x, K_y·K_x]`."""
            return flat(op.Mul(op.Unsqueeze(a, [2, 4]), op.Unsqueeze(b, [1, 3])))

        def flat(v: ir.Value) -> ir.Value:
            """`[R, B_y, B_x, K_y, K_x]` as `[R, B_y·B_x, K_y·K_x]`."""
            bins = op.ReduceProd(op.Shape(dy, start=2), keepdims=1)
            corners = op.ReduceProd(op.Shape(v, start=3), keepdims=1)
            return op.Reshape(v, op.Concat(op.Shape(v, start=0, end=1), bins, corners, axis=0), allowzero=1)

        first = op.Mul(op.Cast(images, to=ir.DataType.INT64), down.size)
        rows = op.Mul(op.Add(op.Unsqueeze(first, [1, 2, 3, 4]), op.Unsqueeze(y, [2, 4])), across.size)
        rows = flat(op.Add(rows, op.Unsqueeze(x_, [1, 3])))
        weights, used = combine(w_y, w_x), combine(used_y, used_x)
        values = op.Mul(op.Gather(channels_last(op, x), rows), op.Unsqueeze(weights, [3]))
        values = op.Sub(values, op.Unsqueeze(op.Mul(op.Sub(1.0, used), 1e30), [3]))
        best = op.ArgMax(values, axis=2, keepdims=0)  # [R, B, C]
        updates = op.Mul(op.GatherElements(op.Mul(weights, used), best, axis=2), points_first(op, dy))
        chosen = op.GatherElements(rows, best, axis=2)
        by_channel = op.Concat([-1], size_of(op, x, 1), axis=0)
        updates, chosen = op.Reshape(updates, by_channel), op.Reshape(chosen, by_channel)
        return images_of(op, op.ScatterElements(zero_rows(op, x, dy), chosen, updates, axis=0, reduction="add"), x)

    return (largest if node.attributes.get_string("mode", "avg") == "max" else mean,)


def _samples(op: OpBuilder, node: ir.Node, x: ir.Value, rois: ir.Value, axis: int) -> _Samples:
    """The samples along axis 2 (height) or 3 (width) of the images."""
    half_pixel = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    ratio = node.attributes.get_int("sampling_ratio", 0)
    bins = node.attributes.get_int("output_height" if axis == 2 else "output_width", 1)
    column = 3 - axis
    scaled = op.Mul(rois, node.attributes.get_float("spatial_scale", 1.0))
    start, end = (op.Unsqueeze(op.Slice(scaled, [c], [c + 1], [1]), [2]) for c in (column, column + 2))
    extent = op.Sub(end, start)
    if half_pixel:
        start = op.Sub(start, 0.5)
    else:
        extent = op.Max(extent, 1.0)
    width = op.Div(extent, float(bins))
    if ratio > 0:
        count, most = numbers(op, [float(ratio)], rois), ratio
    else:  # as many as pixels in a bin, a number for each region
        count = op.Ceil(width)
        largest = op.ReduceMax(op.Concat(numbers(op, [0.0], rois), op.Reshape(count, [-1]), axis=0))
        most = op.Cast(largest, to=ir.DataType.INT64)
    sample = count_up(op, most, rois)
    used = indicator(op, op.Less(sample, count), rois)
    count = op.Max(count, 1.0)
    place = op.Div(op.Add(sample, 0.5), count)
    bin_ = op.Unsqueeze(count_up(op, bins, rois), [1])
    at = op.Add(start, op.Mul(op.Add(bin_, place), width))
    size = size_of(op, x, axis)
    length = op.Cast(size, to=type_of(rois))
    inside = indicator(op, op.And(op.GreaterOrEqual(at, -1.0), op.LessOrEqual(at, length)), rois)
    return _Samples(size, op.Min(op.Max(at, 0.0), op.Sub(length, 1.0)), inside, used, count)


def _matrix(op: OpBuilder, samples: _Samples) -> ir.Value:
    """A `[R, B, size]`: how much each pixel counts in each bin. A sample weighs pixels by 1 − their distance."""
    pixels = count_up(op, samples.size, samples.at)
    distance = op.Abs(op.Sub(op.Unsqueeze(samples.at, [3]), pixels))
    weights = op.Mul(op.Max(op.Sub(1.0, distance), 0.0), op.Unsqueeze(op.Mul(samples.inside, samples.used), [3]))
    return op.Div(op.ReduceSum(weights, [2], keepdims=0), samples.count)


def _corners(op: OpBuilder, samples: _Samples) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The two pixels around each sample, their weights, and whether they are used, each `[R, B, 2·G]`."""
    last = op.Sub(op.Cast(samples.size, to=type_of(samples.at)), 1.0)
    low = op.Floor(samples.at)
    part = op.Sub(samples.at, low)
    places = op.Concat(low, op.Min(op.Add(low, 1.0), last), axis=2)
    weights = op.Concat(op.Mul(op.Sub(1.0, part), samples.inside), op.Mul(part, samples.inside), axis=2)
    used = op.Expand(samples.used, op.Shape(samples.at))
    return op.Cast(places, to=ir.DataType.INT64), weights, op.Concat(used, used, axis=2)
