"""Col2Im: columns of blocks, added up to an image."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.nodes import operands
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.sampling import indices
from edgelora_tools.gradients.shapes import rank, reshape_like, size_of


@gradient_rule("Col2Im")
def col2im(op: OpBuilder, node: ir.Node, dy: ir.Value) -> Thunks:
    """Y = 0, plus every block of X `[N, C·blocks' sizes, number of blocks]` at its place; dX = the blocks of dY.

    Along an axis, element k of block l is at l·stride + k·dilation in the padded image.
    """
    x, _, block = operands(node)
    axes = rank(dy) - 2
    strides = node.attributes.get_ints("strides", None) or [1] * axes
    dilations = node.attributes.get_ints("dilations", None) or [1] * axes
    pads = list(node.attributes.get_ints("pads", None) or [0] * 2 * axes)

    def dx() -> ir.Value:
        image, sizes = dy, []
        if any(pads):
            image = op.Pad(dy, [0, 0, *pads[:axes], 0, 0, *pads[axes:]])
        for axis in range(axes):
            k = indices(op, op.Gather(block, [axis]))
            reach = op.Mul(op.Sub(op.Gather(block, [axis]), [1]), [dilations[axis]])
            room = op.Sub(op.Add(size_of(op, dy, axis + 2), [pads[axis] + pads[axis + axes]]), reach)
            starts = op.Range(op.Constant(value_int=0), op.Squeeze(room, [0]), op.Constant(value_int=strides[axis]))
            places = op.Add(op.Unsqueeze(op.Mul(k, [dilations[axis]]), [1]), starts)
            image = op.Gather(image, op.Reshape(places, [-1]), axis=axis + 2)
            sizes += [op.Gather(block, [axis]), op.Shape(starts)]
        apart = op.Reshape(image, op.Concat([0, 0], *sizes, axis=0))
        blocks_first = [0, 1, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2)]
        return reshape_like(op, op.Transpose(apart, perm=blocks_first), x)

    return (dx,)
