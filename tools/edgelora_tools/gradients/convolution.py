"""Convolutions over any number of axes. X is [N, groups·in, …], W [groups·out, in, …], Y [N, groups·out, …]."""

from __future__ import annotations

from itertools import product
from math import prod

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import annotate, dims, reshape_like, size_of
from edgelora_tools.gradients.windows import (
    Ints,
    Window,
    auto_pad,
    crop,
    halves,
    image_axes,
    pad_image,
    sizes_of,
    steps_of,
    window_of,
    with_padding,
)

_TAPS = 16
"""Above so many taps, a product each is slower than one convolution (measured on ONNX Runtime, one thread)."""
_RANK = 8
"""What the number of an adapter's channels, which is open, is taken for."""


@gradient_rule("Conv")
def conv(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X ⋆ W + B, the sum over the kernel's window.

    dX = dY ⋆ W, flipped and with its channels swapped (stride 1), or its transposed convolution
    dW = Σ dY·Xᵀ over the images and places, for every tap of the kernel
    dB = Σ dY
    """
    x, w, *b = operands(node)
    window, group = window_of(op, node, x, dims(w)[2:]), node.attributes.get_int("group", 1)

    def dx() -> ir.Value:
        pads = window.adjoint_pads
        if pads is not None:
            return _flipped(op, dy, x, w, window, pads, group)
        return _transposed(op, dy, x, w, window, group)

    return (
        dx,
        lambda: _weight_gradient(op, dy, x, w, window, window.adjoint_pads, group),
        lambda: _bias_gradient(op, dy, *b),
    )


@gradient_rule("ConvTranspose")
def conv_transpose(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = Xᵗ ⋆ W + B: every pixel of X adds a kernel to Y. Here W is [groups·in, out, …].

    dX = dY ⋆ W, with the same W
    dW = Σ X·dYᵀ, as Conv's dW with X and dY in each other's place
    dB = Σ dY
    """
    x, w, *b = operands(node)
    window, group = _transposed_window(op, node, x, w), node.attributes.get_int("group", 1)
    extra = node.attributes.get_ints("output_padding", None) or []
    more = "output_shape" in node.attributes or any(e >= s for e, s in zip(extra, window.strides, strict=False))

    def dx() -> ir.Value:
        image, pads = with_padding(op, dy, window)
        places = op.Conv(
            image,
            w,
            pads=pads,
            strides=window.strides,
            dilations=window.dilations,
            group=group,
            kernel_shape=window.kernel,
        )
        return crop(op, places, [0] * len(window.kernel), x) if more else annotate(places, x)

    return (
        dx,
        lambda: _weight_gradient(op, x, dy, w, window, None if more else window.adjoint_pads, group),
        lambda: _bias_gradient(op, dy, *b),
    )


def _transposed_window(op: OpBuilder, node: ir.Node, x: ir.Value, w: ir.Value) -> Window:
    """The window with which Conv takes Y to the places of X, and perhaps to more behind them.

    X makes an image of length = (size − 1)·stride + reach + 1 + output_padding, cut by the pads to Y; output_shape
    and auto_pad (Y = size·stride) tell the pads' sum instead. Conv does not need the output_padding.
    """
    kernel, strides, dilations = steps_of(node, x, dims(w)[2:])
    axes, mode = len(kernel), auto_pad(node)
    extra = list(node.attributes.get_ints("output_padding", None) or [0] * axes)
    shape = list(node.attributes.get_ints("output_shape", None) or [])[-axes:]
    over = [d * (k - 1) + 1 + e - s for k, d, e, s in zip(kernel, dilations, extra, strides, strict=True)]
    if shape:
        before, after = halves(op, _length_less(op, x, strides, over, shape), mode == "SAME_UPPER")
    elif mode.startswith("SAME"):
        before, after = halves(op, [max(n, 0) for n in over], mode == "SAME_UPPER")
    else:
        given = window_of(op, node, x, kernel)
        before, after = given.before, given.after
    if isinstance(after, list):
        return Window(kernel, strides, dilations, before, [max(a - e, 0) for a, e in zip(after, extra, strict=True)])
    return Window(kernel, strides, dilations, before, op.Max(op.Sub(after, extra), [0]))


def _length_less(op: OpBuilder, x: ir.Value, strides: list[int], over: list[int], shape: list[int]) -> Ints:
    """size·stride + over − shape, not below zero."""
    sizes = [d for d in dims(x)[2:] if isinstance(d, int)]
    if len(sizes) == len(strides):
        return [max(n * s + o - m, 0) for n, s, o, m in zip(sizes, strides, over, shape, strict=True)]
    return op.Max(op.Sub(op.Add(op.Mul(sizes_of(op, x), strides), over), shape), [0])


def _flipped(
    op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, pads: list[int], group: int
) -> ir.Value:
    """The input gradient at stride 1: an ordinary convolution, and the fastest, with a kernel that is constant."""
    axes = image_axes(w)
    flipped = w
    if prod(window.kernel) > 1:
        flipped = op.Slice(w, [-1] * len(axes), [-(1 << 31)] * len(axes), axes, [-1] * len(axes))
    kernel = _channels_swapped(op, flipped, x, w, group)
    dx = op.Conv(dy, kernel, pads=pads, dilations=window.dilations, group=group, kernel_shape=window.kernel)
    return annotate(dx, x)


def _channels_swapped(op: OpBuilder, kernel: ir.Value, x: ir.Value, w: ir.Value, group: int) -> ir.Value:
    """A kernel of W's shape as [groups·in, out, …]."""
    axes = image_axes(w)
    if group == 1:
        return op.Transpose(kernel, perm=[1, 0, *axes])
    channels = op.Div(size_of(op, w, 0), [group])  # no -1 below: an adapter of rank 0 has no elements
    rest = [size_of(op, w, a) for a in axes]
    per_group = op.Reshape(kernel, op.Concat([group], channels, size_of(op, w, 1), *rest, axis=0), allowzero=1)
    swapped = op.Transpose(per_group, perm=[0, 2, 1, *(a + 1 for a in axes)])
    return op.Reshape(swapped, op.Concat(size_of(op, x, 1), channels, *rest, axis=0), allowzero=1)


def _transposed(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value:
    """The input gradient at any stride. What the strides did not reach at the end is zero."""
    fitting = _fitting(dy, x, window)
    pads, more = fitting or ([0] * 2 * len(window.kernel), [s - 1 for s in window.strides])
    wide = op.ConvTranspose(
        dy,
        w,
        pads=pads,
        strides=window.strides,
        dilations=window.dilations,
        group=group,
        kernel_shape=window.kernel,
        output_padding=more,
    )
    return annotate(wide, x) if fitting else crop(op, wide, window.before, x)


def _fitting(dy: ir.Value, x: ir.Value, window: Window) -> tuple[list[int], list[int]] | None:
    """The pads and output_padding with which a transposed convolution of `dy` has the size of `x`; None if unknown."""
    before, places, sizes = window.before, dims(dy)[2:], dims(x)[2:]
    if not isinstance(before, list):
        return None
    after: list[int] = []
    more: list[int] = []
    for p, n, s, r, b in zip(places, sizes, window.strides, window.reach, before, strict=True):
        if not isinstance(p, int) or not isinstance(n, int):
            return None
        over = (p - 1) * s + r + 1 - b - n
        after.append(max(over, 0))
        more.append(max(-over, 0))
    return (before + after, more) if all(m < s for m, s in zip(more, window.strides, strict=True)) else None


def _weight_gradient(
    op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, pads: list[int] | None, group: int
) -> ir.Value:
    """dW at a tap of the kernel = dY·Xᵀ, with the pixels of X that the tap saw: a product a tap.

    The fewer channels are moved the better: those of dY go to the pixels of X where they are fewer, as in a low-rank
    adapter, of which an open number of channels is the rank; `pads` are the window's adjoint_pads, or None where Y is
    longer than its places need. A kernel of many taps, or of one channel, is better convolved.
    """
    taps, many, few = prod(window.kernel), dims(x)[1], dims(dy)[1]
    few = few if isinstance(few, int) else _RANK
    if pads is not None and taps > 1 and isinstance(many, int) and taps * few <= _TAPS * many and few < many:
        return _from_taps_of_y(op, dy, x, w, window, pads, group)
    depthwise = group > 1 and dims(w)[1] == 1
    return (_swapped if taps > _TAPS or depthwise else _from_taps_of_x)(op, dy, x, w, window, group)


def _from_taps_of_y(
    op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, pads: list[int], group: int
) -> ir.Value:
    """At stride 1: [N, groups, taps·out, pixels of X]·[N, groups, pixels of X, in], summed over N."""
    padded, sizes = pad_image(op, dy, pads[: len(pads) // 2], pads[len(pads) // 2 :]), sizes_of(op, x)
    taps = []
    for tap in product(*map(range, window.kernel)):
        start = [r - t * d for t, r, d in zip(tap, window.reach, window.dilations, strict=True)]
        moved = op.Slice(padded, start, op.Add(sizes, start), image_axes(x))
        taps.append(_by_group(op, moved, dy, group))
    images = op.Transpose(_by_group(op, x, x, group), perm=[0, 1, 3, 2])
    dw = op.ReduceSum(op.MatMul(op.Concat(*taps, axis=2), images), [0], keepdims=0)
    out = op.Div(size_of(op, w, 0), [group])
    apart = op.Reshape(dw, op.Concat([group, len(taps)], out, size_of(op, w, 1), axis=0), allowzero=1)
    return reshape_like(op, op.Transpose(apart, perm=[0, 2, 3, 1]), w)


def _from_taps_of_x(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value:
    """[N, groups, out, places]·[N, groups, places, in] for each tap, summed over N."""
    padded = x if window.unpadded else pad_image(op, x, window.before, window.after)
    strides, axes = window.strides, image_axes(x)
    length = op.Add(op.Mul(op.Sub(sizes_of(op, dy), [1]), strides), [1])
    cotangents = _by_group(op, dy, dy, group)
    taps = []
    for tap in product(*map(range, window.kernel)):
        start = [t * d for t, d in zip(tap, window.dilations, strict=True)]
        whole = window.unpadded and set(strides) == {1} == set(window.kernel)
        seen = x if whole else op.Slice(padded, start, op.Add(length, start), axes, strides)
        images = op.Transpose(_by_group(op, seen, x, group), perm=[0, 1, 3, 2])
        taps.append(op.Unsqueeze(op.ReduceSum(op.MatMul(cotangents, images), [0], keepdims=0), [3]))
    return reshape_like(op, taps[0] if len(taps) == 1 else op.Concat(*taps, axis=3), w)


def _by_group(op: OpBuilder, image: ir.Value, like: ir.Value, group: int) -> ir.Value:
    """[N, groups·c, …] as [N, groups, c, pixels], with the channels of `like`."""
    channels = dims(like)[1]
    if isinstance(channels, int):
        return op.Reshape(image, [0, group, channels // group, -1])
    pixels = op.ReduceProd(sizes_of(op, image))  # no -1: an adapter of rank 0 has no channels
    shape = op.Concat(size_of(op, image, 0), [group], op.Div(size_of(op, like, 1), [group]), pixels, axis=0)
    return op.Reshape(image, shape, allowzero=1)


def _swapped(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value:
    """X ⋆ dY, with images as channels, and strides and dilations swapped.

    [N, groups·in, …] as [in, groups·N, …], convolved by [groups·out, N, …], is [in, groups·out, kernel].
    """
    axes = image_axes(x)
    image, pads = with_padding(op, x, window)
    sizes = sizes_of(op, image)
    rows, channels = size_of(op, x, 0), op.Div(size_of(op, x, 1), [group])
    apart = op.Reshape(image, op.Concat(rows, [group], channels, sizes, axis=0), allowzero=1)
    turned = op.Transpose(apart, perm=[2, 1, 0, *(a + 1 for a in axes)])
    images = op.Reshape(turned, op.Concat(channels, op.Mul(rows, [group]), sizes, axis=0), allowzero=1)
    kernels = op.Transpose(dy, perm=[1, 0, *axes])
    dw = op.Conv(images, kernels, pads=pads, strides=window.dilations, dilations=window.strides, group=group)
    dw = op.Slice(dw, [0] * len(axes), window.kernel, axes)
    return annotate(op.Transpose(dw, perm=[1, 0, *axes]), w)


def _bias_gradient(op: OpBuilder, dy: ir.Value, b: ir.Value) -> ir.Value:
    return annotate(op.ReduceSum(dy, [0, *image_axes(dy)], keepdims=0), b)
