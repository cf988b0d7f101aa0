"""Resize: a matrix along every axis, which the operator itself tells."""

from __future__ import annotations

import math

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operand
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.sampling import numbers
from edgelora_tools.gradients.shapes import annotate, axis_of, dims, filled, rank, size_of

_MAPPING = ("mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside", "antialias")
"""The attributes that tell how an axis is resized. Without `extrapolation_value`, what lies outside is 0."""
_HALF_PIXEL = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel")


@gradient_rule("Resize")
def resize(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = X with a matrix R along every axis, Y[i] = Σⱼ R[i, j]·X[j], plus a constant; dX = Rᵀ along every axis of dY.

    R is the same Resize of an identity matrix, for any attribute: Resize is linear, and its axes are
    independent. Nearest neighbours at whole factors repeat blocks; there, dX = Σ dY of a block.
    """
    (x,) = node.inputs[:1]
    assert x is not None

    def dx() -> ir.Value:
        if factors := _blocks(node, x):
            mean = op.AveragePool(dy, kernel_shape=factors[2:], strides=factors[2:])
            return annotate(op.Mul(mean, float(math.prod(factors))), x)
        dx = dy
        for position, axis in reversed(list(enumerate(_axes(node, x)))):
            if not _unchanged(node, x, position, axis):
                dx = _multiply(op, _matrix(op, node, x, dy, position, axis), dx, axis, rank(x))
        return annotate(dx, x)

    return (dx,)


def _axes(node: ir.Node, x: ir.Value) -> list[int]:
    """The axes that scales, sizes and roi speak of, in their order."""
    return [axis_of(a, x) for a in node.attributes.get_ints("axes", None) or range(rank(x))]


def _given(node: ir.Node, position: int) -> ir.Value | None:
    """The input at `position`; an empty tensor stands for an absent one."""
    x = operand(node, position)
    return None if x is None or (x.shape is not None and dims(x) == (0,)) else x


def _numbers(node: ir.Node, position: int) -> list[float] | None:
    """The input at `position` as numbers, or None where it is absent or computed."""
    x = _given(node, position)
    return None if x is None or x.const_value is None else [float(i) for i in x.const_value.numpy()]


def _keeps_aspect_ratio(node: ir.Node) -> bool:
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    return policy != "stretch" and _given(node, 3) is not None


def _crops(node: ir.Node) -> bool:
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"


def _unchanged(node: ir.Node, x: ir.Value, position: int, axis: int) -> bool:
    """Whether the operator is known to leave `axis` as it is."""
    if _crops(node):
        roi = _numbers(node, 1)
        if roi is None or (roi[position], roi[position + len(roi) // 2]) != (0.0, 1.0):
            return False
    if _given(node, 2) is not None:
        scales = _numbers(node, 2)
        return scales is not None and scales[position] == 1.0
    before, after = dims(x)[axis], dims(node.outputs[0])[axis]
    return not _keeps_aspect_ratio(node) and before is not None and before == after


def _blocks(node: ir.Node, x: ir.Value) -> list[int] | None:
    """How often each element is repeated along each axis, where images of up to 3 axes are enlarged so."""
    nearest = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    mapping = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounds = (mapping, nearest) == ("asymmetric", "floor") or (mapping in _HALF_PIXEL and "round" in nearest)
    if node.attributes.get_string("mode", "nearest") != "nearest" or not rounds or not 3 <= rank(x) <= 5:
        return None
    factors = [1.0] * rank(x)
    scales = _numbers(node, 2)
    for position, axis in enumerate(_axes(node, x)):
        if _unchanged(node, x, position, axis):
            continue
        before, after = dims(x)[axis], dims(node.outputs[0])[axis]
        if scales is not None:
            factors[axis] = scales[position]
        elif _given(node, 2) is None and isinstance(before, int) and isinstance(after, int) and before:
            factors[axis] = after / before
        else:
            return None
    whole = factors[:2] == [1.0, 1.0] and all(f >= 1 and f.is_integer() for f in factors)
    return [int(f) for f in factors] if whole and not _keeps_aspect_ratio(node) else None


def _matrix(op: OpBuilder, node: ir.Node, x: ir.Value, dy: ir.Value, position: int, axis: int) -> ir.Value:
    """Rᵀ `[size of X, size of Y]` along `axis`: an identity matrix as an image `[1, n, n, 1]`, resized in height.

    Kernels of every mode take this layout. Where the aspect ratio is kept, the axis that sets the scale
    becomes the width of the image.
    """
    n = size_of(op, x, axis)
    identity = op.EyeLike(filled(op, 0.0, op.Concat(n, n, axis=0), dy))
    image = op.Reshape(identity, op.Concat([1], n, n, [1], axis=0))
    how = {name: node.attributes[name].value for name in _MAPPING if name in node.attributes}
    roi, scales, keeps = None, _given(node, 2), _keeps_aspect_ratio(node)
    if _crops(node):
        roi = op.Gather(node.inputs[1], [position, position + len(_axes(node, x))])
    if keeps:
        width, wanted = _leading_axis(op, node, x)
        image = op.Expand(image, op.Concat([1, 1, 1], width, axis=0))
        sizes = op.Concat(op.Gather(node.inputs[3], [position]), wanted, axis=0)
        if roi is not None:
            roi = op.Gather(op.Concat(roi, numbers(op, [0.0, 1.0], roi), axis=0), [0, 2, 1, 3])
        how["keep_aspect_ratio_policy"] = node.attributes["keep_aspect_ratio_policy"].value
        resized = op.Slice(op.Resize(image, roi, None, sizes, axes=[2, 3], **how), [0], [1], [3])
    elif scales is not None:
        resized = op.Resize(image, roi, op.Gather(scales, [position]), axes=[2], **how)
    else:
        resized = op.Resize(image, roi, None, size_of(op, dy, axis), axes=[2], **how)
    matrix = op.Squeeze(resized, [0, 3])
    matrix.shape, matrix.type = ir.Shape([dims(x)[axis], dims(node.outputs[0])[axis]]), dy.type
    return matrix


def _leading_axis(op: OpBuilder, node: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The size, before and as wanted, of the axis that sets the scale of all, each `[1]`."""
    larger = node.attributes.get_string("keep_aspect_ratio_policy") == "not_smaller"
    before = op.Concat(*(size_of(op, x, axis) for axis in _axes(node, x)), axis=0)
    wanted = node.inputs[3]
    ratios = op.Div(op.Cast(wanted, to=ir.DataType.FLOAT), op.Cast(before, to=ir.DataType.FLOAT))
    leading = (op.ArgMax if larger else op.ArgMin)(ratios, axis=0, keepdims=1)
    return op.Gather(before, leading), op.Gather(wanted, leading)


def _multiply(op: OpBuilder, matrix: ir.Value, y: ir.Value, axis: int, of: int) -> ir.Value:
    """`matrix` `[n, m]` applied to `y`, of rank `of`, along `axis`."""
    if axis == of - 1:
        return op.MatMul(y, op.Transpose(matrix, perm=[1, 0]))
    if axis == of - 2:
        return op.MatMul(matrix, y)
    swapped = list(range(of))
    swapped[axis], swapped[-2] = of - 2, axis
    return op.Transpose(op.MatMul(matrix, op.Transpose(y, perm=swapped)), perm=swapped)
