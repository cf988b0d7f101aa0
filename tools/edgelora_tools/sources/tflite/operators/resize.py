"""Resizing pictures, and depth to space."""

from __future__ import annotations

import onnx_ir as ir

from edgelora.errors import ConversionError
from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.operators.registry import translation
from edgelora_tools.sources.tflite.translation import Translation


@translation("RESIZE_BILINEAR")
def resize(state: Translation, node: Operator) -> None:
    """Y = X at another height and width; corners aligned, centres of pixels, or their corners."""
    x, y = node.inputs[0], node.outputs[0]
    if state.rank(x) != 4 or state.rank(y) != 4:
        raise ConversionError(f"{node.kind} is of four axes, and this one has {state.rank(x)}")
    aligned, centres = bool(node.options.get("AlignCorners")), bool(node.options.get("HalfPixelCenters"))
    made = state.op.Resize(
        state.first(x),
        None,
        None,
        state.op.Constant(value_ints=list(state.tensor(y).shape[1:3])),
        axes=[2, 3],
        mode="linear",
        coordinate_transformation_mode="align_corners" if aligned else "half_pixel" if centres else "asymmetric",
    )
    made.shape, made.dtype = state.shape(y, first=True), ir.DataType.FLOAT
    state.put(y, made, True)


@translation("DEPTH_TO_SPACE")
def depth_to_space(state: Translation, node: Operator) -> None:
    """Blocks of pixels from channels; the position in the block comes before the channel."""
    x, block = node.inputs[0], int(node.options["BlockSize"])
    if state.rank(x) != 4 or block < 1:
        raise ConversionError(f"{node.kind} is of four axes and blocks of one or more, not {state.rank(x)} and {block}")
    made = state.op.DepthToSpace(state.first(x), blocksize=block, mode="DCR")
    state.put(node.outputs[0], made, True, x)
