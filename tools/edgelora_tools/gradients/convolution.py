"""Convolutions over any number of axes. X is [N, groups·in, …], W [groups·out, in, …], Y [N, groups·out, …]."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands, refuse
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import annotate, dims, rank, size_of


@dataclass(frozen=True)
class _Window:
    """How a kernel moves over the axes of an image: one number an axis."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    group: int

    @property
    def reach(self) -> list[int]:
        """The distance between the first and the last element that the kernel touches."""
        return [d * (k - 1) for k, d in zip(self.kernel, self.dilations, strict=True)]


def _window(node: ir.Node, x: ir.Value, w: ir.Value) -> _Window:
    ones = [1] * (rank(x) - 2)
    kernel = [k for k in node.attributes.get_ints("kernel_shape", None) or dims(w)[2:] if isinstance(k, int)]
    if len(kernel) != len(ones):
        raise refuse(node, "has a kernel of unknown size")
    if node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        raise refuse(node, "has auto_pad instead of pads")
    pads = list(node.attributes.get_ints("pads", None) or [0, 0] * len(ones))
    return _Window(
        kernel,
        strides=list(node.attributes.get_ints("strides", None) or ones),
        dilations=list(node.attributes.get_ints("dilations", None) or ones),
        before=pads[: len(ones)],
        after=pads[len(ones) :],
        group=node.attributes.get_int("group", 1),
    )


@gradient_rule("Conv")
def conv(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X ⋆ W + B, the sum over the kernel's window.

    dX = dY ⋆ W, flipped and with its channels swapped (stride 1), or its transposed convolution
    dW = X ⋆ dY, with images as channels and strides as dilations
    dB = Σ dY
    """
    x, w, *b = operands(node)
    window = _window(node, x, w)
    stride_one = set(window.strides) == {1}
    inside = all(p <= r for p, r in zip(window.before + window.after, window.reach * 2, strict=True))
    return (
        lambda: (_flipped if stride_one and inside else _transposed)(op, dy, x, w, window),
        lambda: _weight_gradient(op, dy, x, w, window),
        lambda: annotate(op.ReduceSum(dy, [0, *range(2, rank(dy))], keepdims=0), *b),
    )


def _flipped(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: _Window) -> ir.Value:
    """The input gradient at stride 1: an ordinary convolution, and the fastest, with a kernel that is constant."""
    axes = list(range(2, rank(w)))
    flipped = op.Slice(w, [-1] * len(axes), [-(1 << 31)] * len(axes), axes, [-1] * len(axes))
    per_group = op.Reshape(flipped, op.Concat([window.group, -1], *(size_of(op, w, a) for a in (1, *axes)), axis=0))
    swapped = op.Transpose(per_group, perm=[0, 2, 1, *(a + 1 for a in axes)])
    kernel = op.Reshape(swapped, op.Concat(size_of(op, x, 1), [-1], *(size_of(op, w, a) for a in axes), axis=0))
    pads = [r - p for r, p in zip(window.reach * 2, window.before + window.after, strict=True)]
    dx = op.Conv(dy, kernel, pads=pads, dilations=window.dilations, group=window.group, kernel_shape=window.kernel)
    return annotate(dx, x)


def _transposed(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: _Window) -> ir.Value:
    """The input gradient at any stride. What the strides did not reach at the end is zero."""
    axes = list(range(2, rank(w)))
    wide = op.ConvTranspose(
        dy,
        w,
        strides=window.strides,
        dilations=window.dilations,
        group=window.group,
        kernel_shape=window.kernel,
        output_padding=[s - 1 for s in window.strides],
    )
    before = op.Constant(value_ints=window.before)
    sizes = op.Concat(*(size_of(op, x, a) for a in axes), axis=0)
    return annotate(op.Slice(wide, before, op.Add(before, sizes), axes), x)


def _weight_gradient(op: OpBuilder, dy: ir.Value, x: ir.Value, w: ir.Value, window: _Window) -> ir.Value:
    """[N, groups·in, …] as [in, groups·N, …], convolved by [groups·out, N, …], is [in, groups·out, kernel]."""
    axes = list(range(2, rank(x)))
    sizes = [size_of(op, x, a) for a in axes]
    apart = op.Reshape(x, op.Concat([0, window.group, -1], *sizes, axis=0))
    turned = op.Transpose(apart, perm=[2, 1, 0, *(a + 1 for a in axes)])
    images = op.Reshape(turned, op.Concat([0, -1], *sizes, axis=0))
    kernels = op.Transpose(dy, perm=[1, 0, *axes])
    dw = op.Conv(
        images,
        kernels,
        pads=window.before + window.after,
        strides=window.dilations,
        dilations=window.strides,
        group=window.group,
    )
    dw = op.Slice(dw, [0] * len(axes), window.kernel, axes)
    return annotate(op.Transpose(dw, perm=[1, 0, *axes]), w)
