"""Heads that say something of every place of a map: a 1×1 convolution of features `[batch, channels, h, w]`."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora.manifest import Head
from edgelora.parity import COLOURS
from edgelora_tools.gradients.shapes import dims, known_equal, rank, shape_of

MAP_HEADS = {"semantic-segmentation": "classifier", "keypoint-detection": "keypoints", "object-detection": "detector"}
"""The tasks whose head reads a map, and the name of the head."""
LEADING = {"object-detection": 5}
"""How many outputs come before those of the classes: objectness and a box."""
AT_THE_PICTURES_SIZE = ("semantic-segmentation",)
"""Those whose logits are enlarged to the picture's height and width, so that the loss sees every pixel."""


def map_logits(op: OpBuilder, graph: ir.Graph, features: ir.Value, task: str) -> tuple[ir.Value, Head]:
    """logits = W·features + b at every place, W `[outputs, channels]`, for the head of `task`.

    Enlarged they are interpolated bilinearly between the centres of places, as torch does without `align_corners`.

    Raises:
        ConversionError: the number of channels is dynamic; or the source takes no picture whose size could be had.
    """
    picture = next((x for x in graph.inputs if x.shape is not None and rank(x) == 4), None)
    batch, channels, *places = dims(features)
    if not isinstance(channels, int):
        raise ConversionError(f"the channels of {features.name!r} are dynamic: a head needs a fixed number of them")
    head = Head(MAP_HEADS[task], channels, "pixel", LEADING.get(task, 0))
    weight = op.builder.input(head.weight, ir.DataType.FLOAT, ["outputs", channels])
    bias = op.builder.input(head.bias, ir.DataType.FLOAT, ["outputs"])
    logits = op.Conv(features, op.Unsqueeze(weight, [2, 3]), bias, kernel_shape=[1, 1])
    logits.shape, logits.type = ir.Shape([batch, "outputs", *places]), features.type
    if task in AT_THE_PICTURES_SIZE:
        if picture is None:
            raise ConversionError(f"{task} needs a picture as input, of rank 4, and the source has none")
        logits = _enlarged(op, logits, picture)
    return logits, head


def has_channels_last(picture: ir.Value) -> bool:
    """Whether a picture `[batch, …]` of rank 4 has its colours on the last axis."""
    sizes = dims(picture)
    return sizes[3] in COLOURS and sizes[1] not in COLOURS


def _enlarged(op: OpBuilder, logits: ir.Value, picture: ir.Value) -> ir.Value:
    axes = slice(1, 3) if has_channels_last(picture) else slice(2, 4)
    wanted = dims(picture)[axes]
    if known_equal(wanted, dims(logits)[2:]):
        return logits
    sizes = op.Slice(shape_of(op, picture), [axes.start], [axes.stop])
    made = op.Resize(logits, None, None, sizes, axes=[2, 3], mode="linear", coordinate_transformation_mode="half_pixel")
    made.shape, made.type = ir.Shape([*dims(logits)[:2], *wanted]), logits.type
    return made
