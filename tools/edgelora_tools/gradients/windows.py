"""How a kernel or a pool moves over an image: its window with the padding resolved, and what its places share.

An image is [N, C, size…]; a window takes `out` places on an axis, at i·stride − before, and looks there at
`kernel` pixels, `dilation` apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import refuse
from edgelora_tools.gradients.shapes import annotate, dims, known_equal, rank, size_of

Ints = list[int] | ir.Value
"""A number an axis: known, or an int64 tensor."""


@dataclass(frozen=True)
class Window:
    """How a window moves over the axes of an image: one number an axis.

    `before` and `after` are the pixels of padding. A window may hang over the end (ceil_mode).
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: Ints
    after: Ints

    @property
    def reach(self) -> list[int]:
        """The distance between the first and the last pixel that the window touches."""
        return [d * (k - 1) for k, d in zip(self.kernel, self.dilations, strict=True)]

    @property
    def adjoint_pads(self) -> list[int] | None:
        """The pads with which a window over Y, at every pixel of X, sees the places that saw the pixel.

        None where no plain window does that: at a stride, and where a place sees padding alone.
        """
        if not isinstance(self.before, list) or not isinstance(self.after, list) or set(self.strides) != {1}:
            return None
        pads = [r - p for r, p in zip(self.reach * 2, self.before + self.after, strict=True)]
        return pads if min(pads) >= 0 else None

    @property
    def tiles(self) -> bool:
        """Whether the places lie side by side without gap and overlap."""
        return self.kernel == self.strides and set(self.dilations) == {1}

    @property
    def unpadded(self) -> bool:
        """Whether the image is known to have no padding."""
        return self.before == self.after == [0] * len(self.kernel)


def steps_of(node: ir.Node, x: ir.Value, kernel: Sequence[int | str | None] = ()) -> tuple[list[int], ...]:
    """Kernel, strides and dilations of a node over the image `x`; `kernel` is for one without kernel_shape."""
    axes = rank(x) - 2
    kernel = [k for k in node.attributes.get_ints("kernel_shape", None) or kernel if isinstance(k, int)]
    if len(kernel) != axes:
        raise refuse(node, "has a kernel of unknown size")
    strides = list(node.attributes.get_ints("strides", None) or [1] * axes)
    return kernel, strides, list(node.attributes.get_ints("dilations", None) or [1] * axes)


def window_of(op: OpBuilder, node: ir.Node, x: ir.Value, kernel: Sequence[int | str | None] = ()) -> Window:
    """The window of a node over the image `x`; `kernel` is its size where the node has no kernel_shape.

    The padding of auto_pad is computed when the graph runs, where it depends on sizes that are not known.
    """
    axes = rank(x) - 2
    kernel, strides, dilations = steps_of(node, x, kernel)
    mode = auto_pad(node)
    if mode.startswith("SAME"):
        total = _same(op, x, strides, [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)])
        return Window(kernel, strides, dilations, *halves(op, total, mode == "SAME_UPPER"))
    pads = list(node.attributes.get_ints("pads", None) or [0] * 2 * axes) if mode == "NOTSET" else [0] * 2 * axes
    return Window(kernel, strides, dilations, pads[:axes], pads[axes:])


def auto_pad(node: ir.Node) -> str:
    """NOTSET, SAME_UPPER, SAME_LOWER or VALID."""
    return node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"


def halves(op: OpBuilder, total: Ints, upper: bool) -> tuple[Ints, Ints]:
    """A padding in two, before and after; an odd pixel stands after the image if `upper`, else before it."""
    if isinstance(total, list):
        small = [t // 2 for t in total]
        large = [t - t // 2 for t in total]
    else:
        small = op.Div(total, [2])
        large = op.Sub(total, small)
    return (small, large) if upper else (large, small)


def _same(op: OpBuilder, x: ir.Value, strides: list[int], reach: list[int]) -> Ints:
    """The padding with which the window takes ⌈size/stride⌉ places: that of the last place, less the size."""
    known: list[int] = []
    for size, s, r in zip(dims(x)[2:], strides, reach, strict=True):
        if s == 1:
            known.append(r)
        elif isinstance(size, int):
            known.append(max((size - 1) // s * s + r + 1 - size, 0))
    if len(known) == len(strides):
        return known
    sizes = sizes_of(op, x)
    last = op.Mul(op.Div(op.Sub(sizes, [1]), strides), strides)
    return op.Max(op.Sub(op.Add(last, [r + 1 for r in reach]), sizes), [0])


def sizes_of(op: OpBuilder, x: ir.Value) -> ir.Value:
    """The sizes of the image's axes, int64 `[axes]`."""
    sizes = dims(x)[2:]
    if all(isinstance(d, int) for d in sizes):
        return op.Constant(value_ints=[d for d in sizes if isinstance(d, int)])
    parts = [size_of(op, x, axis) for axis in image_axes(x)]
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


def image_axes(x: ir.Value) -> list[int]:
    """The axes behind batch and channels."""
    return list(range(2, rank(x)))


def with_padding(op: OpBuilder, x: ir.Value, window: Window) -> tuple[ir.Value, list[int]]:
    """The image and the pads for it; one whose padding is computed when the graph runs is padded already."""
    if isinstance(window.before, list) and isinstance(window.after, list):
        return x, window.before + window.after
    return pad_image(op, x, window.before, window.after), [0] * 2 * len(window.kernel)


def pad_image(op: OpBuilder, x: ir.Value, before: Ints, after: Ints, number: float | None = None) -> ir.Value:
    """The image with zeros, or a number, before and after each axis."""
    if isinstance(before, list) and isinstance(after, list):
        pads = op.Constant(value_ints=before + after)
    else:
        pads = op.Concat(before, after, axis=0)
    value = None if number is None else op.CastLike(op.Constant(value_float=number), x)
    return op.Pad(x, pads, value, image_axes(x))


def crop(op: OpBuilder, wide: ir.Value, before: Ints, x: ir.Value) -> ir.Value:
    """The pixels of the image `wide` from `before` on, as many as `x` has."""
    unmoved = before == [0] * len(image_axes(x))
    if unmoved and wide.shape is not None and known_equal(dims(wide)[2:], dims(x)[2:]):
        return annotate(wide, x)
    sizes = sizes_of(op, x)
    ends = sizes if unmoved else op.Add(before, sizes)
    return annotate(op.Slice(wide, before, ends, image_axes(x)), x)


def spread(op: OpBuilder, z: ir.Value, x: ir.Value, window: Window, factor: float = 1.0) -> ir.Value:
    """The adjoint of a sum over the window: each pixel of `x` gets the sum of `z` at the places that saw it.

    It is a sum over windows too where they step by one, a repetition where they tile the image, and the
    transposed convolution of a kernel of ones otherwise. `factor` multiplies the result.
    """
    pads = window.adjoint_pads
    if pads is not None and set(window.dilations) == {1}:
        z = _times(op, z, factor * prod(window.kernel))
        return annotate(op.AveragePool(z, kernel_shape=window.kernel, pads=pads, count_include_pad=1), x)
    if window.tiles:
        return tile(op, _times(op, z, factor), x, window)
    each = op.Reshape(z, op.Concat([-1, 1], sizes_of(op, z), axis=0))
    kernel = op.Constant(value=ir.tensor(np.full([1, 1, *window.kernel], factor, numpy_type(z))))
    wide = op.ConvTranspose(
        each,
        kernel,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        output_padding=[s - 1 for s in window.strides],
    )
    seen = op.Slice(wide, window.before, op.Add(window.before, sizes_of(op, x)), image_axes(x))
    return annotate(op.Reshape(seen, op.Concat(*(size_of(op, x, axis) for axis in range(rank(x))), axis=0)), x)


def tile(op: OpBuilder, z: ir.Value, x: ir.Value, window: Window) -> ir.Value:
    """Each pixel of `z` in all of `x` that its window covers, of windows that tile the image; 0 elsewhere."""
    out, sizes = dims(z)[2:], dims(x)[2:]
    wide = op.Resize(
        z,
        None,
        op.Constant(value_floats=[1.0, 1.0, *map(float, window.kernel)]),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    lengths = [o * k if isinstance(o, int) else None for o, k in zip(out, window.kernel, strict=True)]
    wide.shape = ir.Shape([*dims(z)[:2], *lengths])
    ends = [k - 1 for k in window.kernel]
    if window.unpadded and all(isinstance(n, int) and isinstance(m, int) for n, m in zip(lengths, sizes, strict=True)):
        ends = [max(n - m, 0) for n, m in zip(sizes, lengths, strict=True) if isinstance(n, int) and isinstance(m, int)]
    if any(ends):
        wide = op.Pad(wide, [0] * len(ends) + ends, None, image_axes(x))
    return crop(op, wide, window.before, x)


def _times(op: OpBuilder, z: ir.Value, factor: float) -> ir.Value:
    return z if factor == 1.0 else op.Mul(z, factor)


def numpy_type(x: ir.Value) -> np.dtype:
    """The type of the elements of `x`."""
    if x.dtype is None:
        raise ValueError(f"the type of {x.name!r} is not known")
    return x.dtype.numpy()
