"""The input gradient of a convolution, in the ways that compete. `python -m benchmarks convolutions` measures them.

All compute the same. X is [N, groups·in, …], W [groups·out, in, …], dY [N, groups·out, …]. A kernel that is constant
stays so: what is made of it is computed once, when ONNX Runtime loads the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.shapes import annotate, dims, size_of
from edgelora_tools.gradients.windows import Window, crop, image_axes, sizes_of


def flipped(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value | None:
    """At stride 1: an ordinary convolution by the flipped kernel with its channels swapped."""
    pads = window.adjoint_pads
    if pads is None:
        return None
    kernel = swapped_kernel(op, flipped_kernel(op, w), x, group)
    dx = op.Conv(dy, kernel, pads=pads, dilations=window.dilations, group=group, kernel_shape=window.kernel)
    return annotate(dx, x)


def transposed(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value:
    """At any stride: the transposed convolution. What the strides did not reach at the end is zero."""
    wide = op.ConvTranspose(
        dy,
        w,
        strides=window.strides,
        dilations=window.dilations,
        group=group,
        kernel_shape=window.kernel,
        output_padding=[s - 1 for s in window.strides],
    )
    return crop(op, wide, window.before, x)


def flipped_kernel(op: OpBuilder, w: ir.Value) -> ir.Value:
    """The kernel back to front along all its image axes."""
    axes = [axis for axis in image_axes(w) if dims(w)[axis] != 1]
    if not axes:
        return w
    return annotate(op.Slice(w, [-1] * len(axes), [-(1 << 31)] * len(axes), axes, [-1] * len(axes)), w)


def swapped_kernel(op: OpBuilder, w: ir.Value, x: ir.Value, group: int) -> ir.Value:
    """[groups·out, in, …] as [groups·in, out, …]."""
    axes = image_axes(w)
    if group == 1:
        return op.Transpose(w, perm=[1, 0, *axes])
    if dims(w)[:2] == (group, 1):
        return w
    channels = op.Div(size_of(op, w, 0), [group])  # no -1 below: an adapter of rank 0 has no elements
    rest = [size_of(op, w, a) for a in axes]
    per_group = op.Reshape(w, op.Concat([group], channels, size_of(op, w, 1), *rest, axis=0), allowzero=1)
    turned = op.Transpose(per_group, perm=[0, 2, 1, *(a + 1 for a in axes)])
    return op.Reshape(turned, op.Concat(size_of(op, x, 1), channels, *rest, axis=0), allowzero=1)


def product_of_points(
    op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, group: int
) -> ir.Value | None:
    """Of a kernel of one pixel at stride 1, without padding: Wᵀ·dY for every image, with the pixels in one axis."""
    if prod(window.kernel) != 1 or set(window.strides) != {1} or not window.unpadded or group != 1:
        return None
    rows = op.Reshape(dy, [0, 0, -1])
    columns = op.Transpose(op.Squeeze(w, image_axes(w)), perm=[1, 0])
    sizes = op.Concat(*(size_of(op, x, axis) for axis in range(len(dims(x)))), axis=0)
    return annotate(op.Reshape(op.MatMul(columns, rows), sizes, allowzero=1), x)


def stuffed(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value | None:
    """At any stride: dY with zeros between its places, and then as at stride 1."""
    before, strides = window.before, window.strides
    if not isinstance(before, list) or set(strides) == {1}:
        return None
    pads = [r - b for r, b in zip(window.reach, before, strict=True)]
    if min(pads) < 0:
        return None
    axes = image_axes(x)
    wide = _between_zeros(op, dy, strides)
    sizes = sizes_of(op, x)
    missing = op.Sub(op.Add(sizes, before), sizes_of(op, wide))
    after = op.Max(missing, [0])
    grown = op.Pad(wide, op.Concat(pads, after, axis=0), None, axes)
    kernel = swapped_kernel(op, flipped_kernel(op, w), x, group)
    made = op.Conv(grown, kernel, dilations=window.dilations, group=group, kernel_shape=window.kernel)
    return crop(op, made, [0] * len(axes), x)


def _between_zeros(op: OpBuilder, z: ir.Value, strides: list[int]) -> ir.Value:
    """Each pixel and stride − 1 zeros behind it, along every axis of the image."""
    axes = image_axes(z)
    apart = op.Unsqueeze(z, [3 + 2 * i for i in range(len(axes))])
    zeros = [s - 1 for s in strides]
    spread = op.Pad(apart, [0] * len(axes) + zeros, None, [3 + 2 * i for i in range(len(axes))])
    sizes = op.Mul(sizes_of(op, z), strides)
    made = op.Reshape(spread, op.Concat([0, 0], sizes, axis=0))
    lengths = [d * s if isinstance(d, int) else None for d, s in zip(dims(z)[2:], strides, strict=True)]
    made.shape = ir.Shape([*dims(z)[:2], *lengths])
    return made


@dataclass(frozen=True)
class _Axis:
    """All phases of an axis, with the same places of dY: pads for it, and the taps of each phase."""

    before: int
    after: int
    taps: list[list[int]]


def _phases_of(kernel: int, stride: int, before: int, after: int) -> _Axis | None:
    """x at s·q + f is the sum over m of w at r + s·m times y at q + c − m, with c and r of f + before = s·c + r."""
    steps = [divmod(f + before, stride) for f in range(stride)]
    counts = [max(0, -(-(kernel - r) // stride)) for _, r in steps]
    offsets = [c - m for (c, _), count in zip(steps, counts, strict=True) for m in range(count)]
    low, high = min(offsets), max(offsets)
    if low > 0:
        return None
    taps = [
        [r + stride * (c - o) if 0 <= c - o < count else kernel for o in range(low, high + 1)]
        for (c, r), count in zip(steps, counts, strict=True)
    ]
    more = (stride + kernel - 2 - before - after) // stride  # the most pixels of a phase that dY has not
    return _Axis(-low, max(0, more + high), taps)


def phases(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value | None:
    """At a stride, without dilation: the pixels of X fall into s phases an axis, each a convolution at stride 1.

    One convolution makes all phases of a channel as channels of its own, which are then put side by side.
    """
    axes = _axes_of(window)
    if axes is None:
        return None
    count = len(axes)
    kernel = w
    for i, axis in enumerate(axes):
        zero = op.Pad(kernel, [0, 1], None, [i + 2])
        kernel = op.Gather(zero, op.Constant(value_ints=[t for taps in axis.taps for t in taps]), axis=i + 2)
    out, per_group = op.Div(size_of(op, w, 0), [group]), size_of(op, w, 1)
    apart = [n for axis in axes for n in (len(axis.taps), len(axis.taps[0]))]
    kernel = op.Reshape(kernel, op.Concat([group], out, per_group, apart, axis=0), allowzero=1)
    steps, taps = [3 + 2 * i for i in range(count)], [4 + 2 * i for i in range(count)]
    kernel = op.Transpose(kernel, perm=[0, 2, *steps, 1, *taps])
    all_phases = prod(window.strides)
    sizes = op.Concat(op.Mul(size_of(op, x, 1), [all_phases]), out, apart[1::2], axis=0)
    kernel = op.Reshape(kernel, sizes, allowzero=1)
    pads = [axis.before for axis in axes] + [axis.after for axis in axes]
    made = op.Conv(dy, kernel, pads=pads, group=group, kernel_shape=apart[1::2])
    return crop(op, _side_by_side(op, made, x, window.strides), [0] * count, x)


def phases_apart(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value | None:
    """As `phases`, of a depthwise convolution, with one for each phase: these are depthwise too."""
    axes = _axes_of(window)
    if axes is None or dims(w)[:2] != (group, 1):
        return None
    pads = [axis.before for axis in axes] + [axis.after for axis in axes]
    made = []
    for taps in product(*(axis.taps for axis in axes)):
        kernel = w
        for i, places in enumerate(taps):
            kernel = op.Gather(op.Pad(kernel, [0, 1], None, [i + 2]), op.Constant(value_ints=places), axis=i + 2)
        made.append(op.Conv(dy, kernel, pads=pads, group=group, kernel_shape=[len(t) for t in taps]))
    together = op.Concat(*(op.Unsqueeze(m, [2]) for m in made), axis=2)
    sizes = op.Shape(made[0], start=2)
    channels = op.Mul(size_of(op, x, 1), [len(made)])
    flat = op.Reshape(together, op.Concat(size_of(op, dy, 0), channels, sizes, axis=0), allowzero=1)
    return crop(op, _side_by_side(op, flat, x, window.strides), [0] * len(axes), x)


def _axes_of(window: Window) -> list[_Axis] | None:
    """The phases of every axis; None where there are none, at stride 1, or the window is not known or has gaps."""
    before, after = window.before, window.after
    if not isinstance(before, list) or not isinstance(after, list):
        return None
    if set(window.strides) == {1} or set(window.dilations) != {1}:
        return None
    axes = [_phases_of(*each) for each in zip(window.kernel, window.strides, before, after, strict=True)]
    return None if None in axes else [axis for axis in axes if axis is not None]


def _side_by_side(op: OpBuilder, made: ir.Value, x: ir.Value, strides: list[int]) -> ir.Value:
    """[N, C·phases, …] with the phases of a channel as its pixels, along every axis."""
    axes = len(strides)
    if axes == 2 and strides[0] == strides[1]:
        return op.DepthToSpace(made, blocksize=strides[0], mode="CRD")
    sizes = [op.Shape(made, start=i + 2, end=i + 3) for i in range(axes)]
    apart = op.Reshape(made, op.Concat([0], size_of(op, x, 1), strides, *sizes, axis=0))
    turned = op.Transpose(apart, perm=[0, 1, *(a for i in range(axes) for a in (2 + axes + i, 2 + i))])
    return op.Reshape(turned, op.Concat([0, 0], op.Mul(op.Concat(*sizes, axis=0), strides), axis=0))


WAYS = {
    "flipped": flipped,
    "product": product_of_points,
    "transposed": transposed,
    "phases": phases,
    "phases apart": phases_apart,
    "stuffed": stuffed,
}
