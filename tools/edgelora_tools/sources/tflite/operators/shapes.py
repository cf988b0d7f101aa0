"""Operators that move numbers or tell shapes, and compute nothing."""

from __future__ import annotations

import numpy as np
import tflite

from edgelora.errors import ConversionError
from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.operators.activations import activated
from edgelora_tools.sources.tflite.operators.elementwise import aligned
from edgelora_tools.sources.tflite.operators.registry import translation, uncovered
from edgelora_tools.sources.tflite.translation import TO_FIRST, TO_LAST, Translation


@translation("RESHAPE", "EXPAND_DIMS")
def reshape(state: Translation, node: Operator) -> None:
    """Y = the numbers of X, in their order, in the shape that the file tells."""
    x, y = node.inputs[0], node.outputs[0]
    if np.prod(state.tensor(x).shape) != np.prod(state.tensor(y).shape):
        raise ConversionError(f"{node.kind} from {list(state.tensor(x).shape)} to {list(state.tensor(y).shape)}")
    made = state.op.Reshape(state.last(x), state.target(y))
    made.shape = state.shape(y) if state.batch is None else made.shape
    state.put(y, made, moved=x)


@translation("TRANSPOSE")
def transpose(state: Translation, node: Operator) -> None:
    """Y = X with its axes in another order."""
    x, y = node.inputs[0], node.outputs[0]
    perm = state.numbers(node.inputs[1], "the axes of a transpose")
    if sorted(perm) != list(range(state.rank(x))):
        raise ConversionError(f"TRANSPOSE has the axes {perm} of {state.rank(x)}")
    if state.is_first(x):
        made = state.op.Transpose(state.first(x), perm=[TO_LAST[a] for a in perm])
    else:
        made = state.op.Transpose(state.last(x), perm=perm)
    state.put(y, made, moved=x)


@translation("PAD", "MIRROR_PAD")
def pad(state: Translation, node: Operator) -> None:
    """Y = X with zeros or its own reflection around it."""
    x, y = node.inputs[0], node.outputs[0]
    told = np.array(state.numbers(node.inputs[1], "paddings")).reshape(-1, 2)
    reflects = node.kind == "MIRROR_PAD"
    if len(told) != state.rank(x) or (told < 0).any():
        raise ConversionError(f"{node.kind} has the paddings {told.tolist()} of {state.rank(x)} axes")
    if tuple(int(n) for n in np.array(state.tensor(x).shape) + told.sum(1)) != state.tensor(y).shape:
        raise ConversionError(f"{node.kind}: {state.tensor(y).name!r} has another shape in the file")
    if reflects and node.options.get("Mode", 0) != tflite.MirrorPadMode.REFLECT:
        raise uncovered(node, "that repeats the edge")
    first = state.is_first(x)
    order = TO_FIRST if first else range(state.rank(x))
    pads = state.op.Constant(value_ints=[int(told[a, side]) for side in (0, 1) for a in order])
    value = state.first(x) if first else state.last(x)
    state.put(y, state.op.Pad(value, pads, mode="reflect" if reflects else "constant"), first, x)


@translation("CONCATENATION")
def concatenation(state: Translation, node: Operator) -> None:
    """Y = the inputs one after another along an axis."""
    y, rank = node.outputs[0], state.rank(node.outputs[0])
    operands, first = aligned(state, node.inputs)
    axis = int(node.options["Axis"])
    if not -rank <= axis < rank or any(state.rank(i) != rank for i in node.inputs):
        raise ConversionError(f"CONCATENATION along the axis {axis} of {rank}")
    axis = TO_LAST[axis % rank] if first else axis % rank
    state.put(y, activated(state, node, state.op.Concat(*operands, axis=axis)), first)


@translation("PACK")
def pack(state: Translation, node: Operator) -> None:
    """Y = the inputs along a new axis."""
    axis = state.op.Constant(value_ints=[int(node.options["Axis"])])
    parts = [state.op.Unsqueeze(state.last(i), axis) for i in node.inputs]
    state.put(node.outputs[0], state.op.Concat(*parts, axis=int(node.options["Axis"])))


@translation("SHAPE")
def shape(state: Translation, node: Operator) -> None:
    """Y = the shape of X."""
    state.put(node.outputs[0], state.op.Shape(state.last(node.inputs[0])))


@translation("STRIDED_SLICE")
def strided_slice(state: Translation, node: Operator) -> None:
    """Y = X[begin:end:stride] along its first axes; an axis may be dropped, none can be new here."""
    x, y = node.inputs[0], node.outputs[0]
    begins, ends, strides = (state.numbers(i, "the bounds of a slice") for i in node.inputs[1:4])
    masks = {name: int(node.options.get(name, 0)) for name in ("BeginMask", "EndMask", "ShrinkAxisMask")}
    if node.options.get("EllipsisMask") or node.options.get("NewAxisMask") or node.options.get("Offset"):
        raise uncovered(node, "with an ellipsis, a new axis or an offset")
    if not len(begins) == len(ends) == len(strides) <= state.rank(x) or 0 in strides:
        raise ConversionError(f"STRIDED_SLICE has the bounds {begins}, {ends}, {strides} of {state.rank(x)} axes")
    cuts: list[tuple[int, int, int, int]] = []
    dropped = []
    for axis, (begin, end, stride) in enumerate(zip(begins, ends, strides, strict=True)):
        n = state.tensor(x).shape[axis]
        if masks["ShrinkAxisMask"] >> axis & 1:
            dropped.append(axis)
            cuts.append((axis, begin, begin + 1 if begin != -1 else np.iinfo(np.int64).max, 1))
            continue
        low, high, _ = slice(
            None if masks["BeginMask"] >> axis & 1 else begin, None if masks["EndMask"] >> axis & 1 else end, stride
        ).indices(n)
        if (low, high, stride) != (0, n, 1):
            cuts.append((axis, low, high if high >= 0 else np.iinfo(np.int64).min, stride))
    first = state.is_first(x) and not dropped
    value = state.first(x) if first else state.last(x)
    if cuts:
        axes, lows, highs, steps = (list(map(int, c)) for c in zip(*cuts, strict=True))
        axes = [TO_LAST[a] for a in axes] if first else axes
        value = state.op.Slice(value, *(state.op.Constant(value_ints=c) for c in (lows, highs, axes, steps)))
    if dropped:
        value = state.op.Squeeze(value, state.op.Constant(value_ints=dropped))
    state.put(y, value, first, x)
