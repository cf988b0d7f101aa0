"""DeformConv: a convolution whose kernel reads between pixels, each of its elements displaced by an offset."""

from __future__ import annotations

from functools import cache
from itertools import product

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operand, refuse
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.sampling import (
    LINEAR,
    Pixels,
    along,
    correlate,
    count_up,
    interpolate,
    numbers,
    pixels_of,
    spread,
    taps_of,
)
from edgelora_tools.gradients.shapes import annotate, dims, rank, reshape_like, size_of


@gradient_rule("DeformConv")
def deform_conv(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = W·(M∘V) + B, with V the pixels of X, interpolated where each element k of the kernel stands for each output.

    dW = Σ dY·(M∘V)ᵀ, dB = Σ dY, dU = Wᵀ·dY, dM = Σ dU∘V over channels, dV = dU∘M;
    dX and the offsets' gradients are those of sampling X, as in GridSample.
    X is [N, C, …], V [N, C, K, P], M [N, offset groups·K, P].
    """
    x, w, offset = node.inputs[:3]
    b, m = operand(node, 3), operand(node, 4)
    assert x is not None and w is not None and offset is not None
    axes = rank(x) - 2
    kernel = [k for k in node.attributes.get_ints("kernel_shape", None) or dims(w)[2:] if isinstance(k, int)]
    if len(kernel) != axes:
        raise refuse(node, "has a kernel of unknown size")
    places = list(product(*map(range, kernel)))
    groups, offset_groups = (node.attributes.get_int(name, 1) for name in ("group", "offset_group"))
    strides = node.attributes.get_ints("strides", None) or [1] * axes
    dilations = node.attributes.get_ints("dilations", None) or [1] * axes
    pads = list(node.attributes.get_ints("pads", None) or [0] * 2 * axes)
    outputs = [size_of(op, dy, a + 2) for a in range(axes)]

    @cache
    def images() -> ir.Value:
        """X, a separate image for every offset group: [N·groups, C/groups, …]."""
        channels = dims(x)[1]
        each = channels // offset_groups if isinstance(channels, int) else None
        sizes = [size_of(op, x, a + 2) for a in range(axes)]
        per_group = op.Div(size_of(op, x, 1), [offset_groups])
        apart = op.Reshape(x, op.Concat([-1], per_group, *sizes, axis=0))
        apart.shape = ir.Shape([None, each, *dims(x)[2:]])
        return apart

    @cache
    def pixels() -> Pixels:
        """What the points [N·groups, K·P] read."""
        by_element = op.Reshape(offset, op.Concat([-1, len(places), axes], *outputs, axis=0))
        taps = []
        for a in range(axes):
            moved = op.Squeeze(op.Slice(by_element, [a], [a + 1], [2]), [2])
            start = numbers(op, [float(k[a] * dilations[a] - pads[a]) for k in places], offset)
            start = op.Unsqueeze(start, list(range(1, axes + 1)))
            steps = op.Mul(count_up(op, outputs[a], offset), float(strides[a]))
            if a < axes - 1:
                steps = op.Unsqueeze(steps, list(range(1, axes - a)))
            at = op.Reshape(op.Add(op.Add(moved, start), steps), [0, -1])
            taps.append(taps_of(op, at, size_of(op, x, a + 2), LINEAR))
        return pixels_of(op, op.Mul(size_of(op, x, 0), [offset_groups]), taps)

    def by_offset_group(v: ir.Value, channels: int = -1) -> ir.Value:
        """[N, C, K, P] as [N·groups, C/groups, K·P]."""
        count = op.Mul(size_of(op, x, 0), [offset_groups])
        points = op.Mul(op.ReduceProd(op.Concat(*outputs, axis=0), keepdims=1), [len(places)])
        return op.Reshape(v, op.Concat(count, [channels], points, axis=0))

    @cache
    def v() -> ir.Value:
        """[N·groups, C/groups, K·P]."""
        return op.Transpose(interpolate(op, pixels(), images()), perm=[0, 2, 1])

    def masked(value: ir.Value) -> ir.Value:
        return value if m is None else op.Mul(value, by_offset_group(m, 1))

    @cache
    def dy_by_group() -> ir.Value:
        """[N, groups, C_out/groups, P]."""
        points = op.ReduceProd(op.Concat(*outputs, axis=0), keepdims=1)
        return op.Reshape(dy, op.Concat([0, groups, -1], points, axis=0))

    @cache
    def du() -> ir.Value:
        """[N·groups, C/groups, K·P], of the offset groups."""
        by_group = op.Reshape(w, op.Concat([groups, -1], op.Mul(size_of(op, w, 1), [len(places)]), axis=0))
        return by_offset_group(op.MatMul(op.Transpose(by_group, perm=[0, 2, 1]), dy_by_group()))

    @cache
    def dv() -> ir.Value:
        """[N·groups, K·P, C/groups]."""
        return op.Transpose(masked(du()), perm=[0, 2, 1])

    def dx() -> ir.Value:
        return reshape_like(op, spread(op, pixels(), dv(), images()), x)

    def dw() -> ir.Value:
        points = op.ReduceProd(op.Concat(*outputs, axis=0), keepdims=1)
        inner = op.Mul(size_of(op, w, 1), [len(places)])
        u = op.Reshape(masked(v()), op.Concat([-1, groups], inner, points, axis=0))
        per_image = op.MatMul(dy_by_group(), op.Transpose(u, perm=[0, 1, 3, 2]))
        return reshape_like(op, op.ReduceSum(per_image, [0], keepdims=0), w)

    def doffset() -> ir.Value:
        products = correlate(op, pixels(), images(), dv())
        parts = [along(op, pixels(), a, products) for a in range(axes)]
        split = [op.Unsqueeze(op.Reshape(d, [0, len(places), -1]), [2]) for d in parts]
        return reshape_like(op, op.Concat(*split, axis=2), offset)

    def db() -> ir.Value:
        db = op.ReduceSum(dy, [0, *range(2, rank(dy))], keepdims=0)
        return annotate(db, b) if b is not None else db

    def dm() -> ir.Value:
        assert m is not None
        return reshape_like(op, op.ReduceSum(op.Mul(du(), v()), [1], keepdims=0), m)

    return dx, dw, doffset, db, dm
