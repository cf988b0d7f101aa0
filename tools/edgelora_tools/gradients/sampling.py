"""Sampling images at points between their pixels: GridSample, and AffineGrid, which makes its points.

A point reads a few pixels along every axis, its taps, with weights that are polynomials of the distance.
Images stand as rows of channels: X `[N, C, D…]` as `[N·D…, C]`, the points' outputs as `[N, P, C]`, and the
pixels of a point, each combination of taps, as `[N, P, K]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import annotate, filled, indicator, rank, reshape_like, size_of

_A = -0.75  # of the cubic kernel


@dataclass(frozen=True)
class Kernel:
    """How a point weighs its taps along an axis: by a polynomial of the distance, highest power first, for each tap.

    `offsets` are the taps' places, counted from the pixel before the point, and `signs` the slopes of
    their distances from it.
    """

    offsets: tuple[float, ...]
    signs: tuple[float, ...]
    polynomials: tuple[tuple[float, ...], ...]


_NEAR = (_A + 2, -(_A + 3), 0.0, 1.0)
_FAR = (_A, -5 * _A, 8 * _A, -4 * _A)
NEAREST = Kernel((0.0,), (0.0,), ((1.0,),))
LINEAR = Kernel((0.0, 1.0), (1.0, -1.0), ((-1.0, 1.0), (-1.0, 1.0)))
CUBIC = Kernel((-1.0, 0.0, 1.0, 2.0), (1.0, 1.0, -1.0, -1.0), (_FAR, _NEAR, _NEAR, _FAR))
_KERNELS = {"nearest": NEAREST, "linear": LINEAR, "bilinear": LINEAR, "cubic": CUBIC, "bicubic": CUBIC}


@dataclass(frozen=True)
class Taps:
    """What points read along one axis of `size`: pixels, weights and the weights' derivatives, each `[N, P, taps]`."""

    size: ir.Value
    places: ir.Value
    weights: ir.Value
    slopes: ir.Value


@dataclass(frozen=True)
class Pixels:
    """What points read of images: rows `[N, P, K]` of `[N·D…, C]`, and along each axis the taps that they combine."""

    rows: ir.Value
    taps: Sequence[Taps]


def type_of(x: ir.Value) -> ir.DataType:
    """The type of `x`, which a rule must know to make numbers of it."""
    if x.dtype is None:
        raise ValueError(f"the type of {x.name!r} is not known")
    return x.dtype


def numbers(op: OpBuilder, values: Sequence[float], like: ir.Value) -> ir.Value:
    """Constants `[n]` in the type of `like`."""
    return op.Constant(value=ir.tensor(list(values), dtype=type_of(like)))


def count_up(op: OpBuilder, count: ir.Value | int, like: ir.Value) -> ir.Value:
    """0, 1, … below `count` (a tensor `[1]`, or known), in the type of `like`."""
    return op.Cast(indices(op, count), to=type_of(like))


def indices(op: OpBuilder, count: ir.Value | int) -> ir.Value:
    """0, 1, … below `count` (a tensor `[1]`, or known), int64."""
    end = op.Constant(value_int=count) if isinstance(count, int) else op.Squeeze(count, [0])
    return op.Range(op.Constant(value_int=0), end, op.Constant(value_int=1))


@gradient_rule("GridSample")
def grid_sample(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y[p] = Σₖ W[p, k]·X[k] over the pixels k of a point p, W = Π w(p) along the axes.

    dX[k] = Σₚ W[p, k]·dY[p]
    dp = Σₖ (dY[p]·X[k])·dW[p, k]/dp, dW/dp = w'(p) along one axis, times w along the others
    """
    x, grid = operands(node)
    axes = rank(x) - 2
    kernel = _KERNELS[node.attributes.get_string("mode", "linear") or "linear"]
    padding = _Padding(
        node.attributes.get_string("padding_mode", "zeros") or "zeros",
        bool(node.attributes.get_int("align_corners", 0)),
    )

    @cache
    def read() -> tuple[Pixels, list[ir.Value]]:
        """The pixels, and dp/dgrid along each axis `[N, P]`."""
        points = op.Reshape(grid, [0, -1, axes])
        taps, slopes = [], []
        for axis in range(axes):
            size = size_of(op, x, axis + 2)
            length = op.Cast(size, to=type_of(grid))
            u = op.Squeeze(op.Slice(points, [axes - 1 - axis], [axes - axis], [2]), [2])
            span = op.Sub(length, 1.0) if padding.align else length
            half = op.Mul(span, 0.5)
            at = op.Add(op.Mul(op.Add(u, 1.0), half), padding.low)
            slope = half
            if kernel is LINEAR:  # moves the point itself; the others, its taps
                at, moved = padding.move(op, at, length)
                slope = half if moved is None else op.Mul(moved, half)
            taps.append(taps_of(op, at, size, kernel, padding))
            slopes.append(slope)
        return pixels_of(op, size_of(op, x, 0), taps), slopes

    def dgrid() -> ir.Value:
        pixels, slopes = read()
        products = correlate(op, pixels, x, points_first(op, dy))
        du = [op.Mul(along(op, pixels, axis, products), slopes[axis]) for axis in reversed(range(axes))]
        return reshape_like(op, op.Concat(*(op.Unsqueeze(d, [2]) for d in du), axis=2), grid)

    def dx() -> ir.Value:
        return spread(op, read()[0], points_first(op, dy), x)

    return dx, None if kernel is NEAREST else dgrid


@dataclass(frozen=True)
class _Padding:
    """What lies outside an axis: `mode` is zeros, border or reflection; at pixels' centres (`align`) or edges."""

    mode: str
    align: bool = True

    @property
    def low(self) -> float:
        """The coordinate of the lower border."""
        return 0.0 if self.align else -0.5

    def move(self, op: OpBuilder, at: ir.Value, length: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        """Coordinates brought inside, and the derivative of that (None: 1)."""
        if self.mode == "zeros":
            return at, None
        slope = None
        if self.mode == "reflection":  # a triangular wave of period 2·span
            span = op.Sub(length, 1.0) if self.align else length
            from_border = op.Sub(at, self.low)
            phase = op.Sub(op.Mod(op.Abs(from_border), op.Max(op.Mul(span, 2.0), 1.0), fmod=1), span)
            at = op.Add(op.Sub(span, op.Abs(phase)), self.low)
            slope = op.Neg(op.Mul(op.Sign(from_border), op.Sign(phase)))
        last = op.Sub(length, 1.0)
        inside = indicator(op, op.And(op.Greater(at, 0.0), op.Less(at, last)), at)
        return op.Min(op.Max(at, 0.0), last), inside if slope is None else op.Mul(slope, inside)


ZEROS = _Padding("zeros")


def taps_of(op: OpBuilder, at: ir.Value, size: ir.Value, kernel: Kernel, padding: _Padding = ZEROS) -> Taps:
    """The taps of points `at` `[N, P]`, in pixels, along an axis of `size` `[1]`."""
    length = op.Cast(size, to=type_of(at))
    before = op.Round(at) if kernel is NEAREST else op.Floor(at)
    offsets = numbers(op, kernel.offsets, at)
    distance = op.Abs(op.Sub(op.Unsqueeze(op.Sub(at, before), [2]), offsets))
    places = op.Add(op.Unsqueeze(before, [2]), offsets)
    weights = slopes = op.Mul(distance, 0.0)
    for power in zip(*kernel.polynomials, strict=True):  # Horner's scheme, and its derivative
        slopes = op.Add(op.Mul(slopes, distance), weights)
        weights = op.Add(op.Mul(weights, distance), numbers(op, power, at))
    slopes = op.Mul(slopes, numbers(op, kernel.signs, at))
    if padding.mode == "zeros":
        last = op.Sub(length, 1.0)
        inside = indicator(op, op.And(op.GreaterOrEqual(places, 0.0), op.LessOrEqual(places, last)), at)
        places = op.Min(op.Max(places, 0.0), last)
        weights, slopes = op.Mul(weights, inside), op.Mul(slopes, inside)
    else:
        places, _ = padding.move(op, places, length)
    return Taps(size, op.Cast(places, to=ir.DataType.INT64), weights, slopes)


def pixels_of(op: OpBuilder, images: ir.Value, taps: Sequence[Taps]) -> Pixels:
    """The pixels that combine `taps`, one for each axis, of as many `images` `[1]`."""
    rows = op.Unsqueeze(indices(op, images), [1, 2])
    for tap in taps:  # [N, P, K, 1]·size + [N, P, 1, taps]
        combined = op.Add(op.Unsqueeze(op.Mul(rows, tap.size), [3]), op.Unsqueeze(tap.places, [2]))
        rows = op.Reshape(combined, [0, 0, -1])
    return Pixels(rows, taps)


def weights_of(op: OpBuilder, pixels: Pixels, slope_of: int | None = None) -> ir.Value:
    """W `[N, P, K]`, or its derivative along the axis `slope_of`."""
    product = None
    for axis, tap in enumerate(pixels.taps):
        factor = tap.slopes if axis == slope_of else tap.weights
        if product is None:
            product = factor
        else:
            product = op.Reshape(op.Mul(op.Unsqueeze(product, [3]), op.Unsqueeze(factor, [2])), [0, 0, -1])
    assert product is not None
    return product


def points_first(op: OpBuilder, y: ir.Value) -> ir.Value:
    """`[N, C, …]` as `[N, P, C]`."""
    return op.Transpose(op.Reshape(y, [0, 0, -1]), perm=[0, 2, 1])


def channels_last(op: OpBuilder, x: ir.Value) -> ir.Value:
    """`[N, C, …]` as rows `[N·…, C]`."""
    rows = op.Reshape(points_first(op, x), op.Concat([-1], size_of(op, x, 1), axis=0))
    rows.shape = ir.Shape([None, x.shape[1] if x.shape is not None else None])
    return rows


def interpolate(op: OpBuilder, pixels: Pixels, x: ir.Value) -> ir.Value:
    """Y `[N, P, C]`: what the points read of the images `x`."""
    read = op.Gather(channels_last(op, x), pixels.rows)
    return op.Squeeze(op.MatMul(op.Unsqueeze(weights_of(op, pixels), [2]), read), [2])


def correlate(op: OpBuilder, pixels: Pixels, x: ir.Value, dy: ir.Value) -> ir.Value:
    """The products dY[p]·X[k] `[N, P, K]` of `dy` `[N, P, C]` with the pixels of each point."""
    read = op.Gather(channels_last(op, x), pixels.rows)
    return op.Squeeze(op.MatMul(read, op.Unsqueeze(dy, [3])), [3])


def along(op: OpBuilder, pixels: Pixels, axis: int, products: ir.Value) -> ir.Value:
    """The derivative `[N, P]` by the points' coordinates along `axis`, from `products` of `correlate`."""
    return op.ReduceSum(op.Mul(products, weights_of(op, pixels, slope_of=axis)), [2], keepdims=0)


def spread(op: OpBuilder, pixels: Pixels, dy: ir.Value, x: ir.Value) -> ir.Value:
    """dX: `dy` `[N, P, C]`, weighted, added to the pixels of each point."""
    updates = op.Mul(op.Unsqueeze(weights_of(op, pixels), [3]), op.Unsqueeze(dy, [2]))
    rows = op.ScatterND(zero_rows(op, x, dy), op.Unsqueeze(pixels.rows, [3]), updates, reduction="add")
    return images_of(op, rows, x)


def zero_rows(op: OpBuilder, x: ir.Value, dy: ir.Value) -> ir.Value:
    """Zeros of the type of `dy`, as rows of the images `x`."""
    count = op.ReduceProd(op.Concat(*(size_of(op, x, a) for a in range(rank(x)) if a != 1), axis=0), keepdims=1)
    return filled(op, 0.0, op.Concat(count, size_of(op, x, 1), axis=0), dy)


def images_of(op: OpBuilder, rows: ir.Value, x: ir.Value) -> ir.Value:
    """Rows `[N·…, C]` as `[N, C, …]`, in the shape of `x`."""
    last = rank(x) - 1
    image = op.Reshape(rows, op.Concat(*(size_of(op, x, a) for a in (0, *range(2, rank(x)), 1)), axis=0))
    return annotate(op.Transpose(image, perm=[0, last, *range(1, last)]), x)


@gradient_rule("AffineGrid")
def affine_grid(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = P·θᵀ, with the points P `[…, r + 1]` of the plain grid and a last column of ones; dθ = dYᵀ·P.

    The operator tells P: its points for r + 1 matrices, each with a single 1 in the first row.
    """
    theta, size = operands(node)
    r = rank(dy) - 2

    def dtheta() -> ir.Value:
        basis = [[[float(i == 0 and j == k) for k in range(r + 1)] for i in range(r)] for j in range(r + 1)]
        sizes = op.Concat([r + 1], op.Slice(size, [1], [r + 2], [0]), axis=0)
        grids = op.AffineGrid(
            op.Constant(value=ir.tensor(basis, dtype=type_of(theta))),
            sizes,
            align_corners=node.attributes.get_int("align_corners", 0),
        )
        first = op.Slice(grids, [0], [1], [r + 1])
        points = op.Transpose(op.Reshape(first, [r + 1, -1]), perm=[1, 0])
        return annotate(op.MatMul(points_first(op, op.Reshape(dy, [0, -1, r])), points), theta)

    return (dtheta,)
