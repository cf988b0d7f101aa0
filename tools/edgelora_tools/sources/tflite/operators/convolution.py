"""Convolutions. TFLite has kernels as [out, height, width, in], those in depth as [1, height, width, channels]."""

from __future__ import annotations

import struct
from typing import Any

import onnx_ir as ir
import tflite

from edgelora.errors import ConversionError
from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.names import module_id
from edgelora_tools.sources.tflite.operators.activations import activated
from edgelora_tools.sources.tflite.operators.registry import translation, uncovered
from edgelora_tools.sources.tflite.translation import Translation

TRANSPOSED_WITH_BIAS = "CUSTOM:Convolution2DTransposeBias"


def same_pads(sizes: tuple[int, ...], window: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """TensorFlow's SAME: outputs of ceil(size/stride), the odd one of the padding at the end."""
    totals = []
    for n, k, s, d in zip(sizes, window, strides, dilations, strict=True):
        totals.append(max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0))
    return [t // 2 for t in totals] + [t - t // 2 for t in totals]


def window_attributes(
    node: Operator, sizes: tuple[int, ...], window: list[int], dilations: list[int]
) -> dict[str, Any]:
    """Strides and pads of a window over `sizes`.

    Raises:
        ConversionError: a stride, a dilation or the window is not positive.
    """
    strides = [int(node.options["StrideH"]), int(node.options["StrideW"])]
    if min(*strides, *window, *dilations) < 1 or max(*strides, *window, *dilations) > 1 << 16:
        raise ConversionError(f"{node.kind} has the window {window}, strides {strides} and dilations {dilations}")
    same = node.options["Padding"] == tflite.Padding.SAME
    pads = same_pads(sizes, window, strides, dilations) if same else [0, 0, 0, 0]
    return {"strides": strides, "pads": pads}


@translation("CONV_2D", "DEPTHWISE_CONV_2D")
def convolution(state: Translation, node: Operator) -> None:
    """Y = X ⋆ W + B; grouped if W has fewer channels than X, in depth if W has one channel each."""
    x, w, *rest = node.inputs
    depthwise, (y,) = node.kind == "DEPTHWISE_CONV_2D", node.outputs
    if state.rank(x) != 4 or state.rank(w) != 4 or state.rank(y) != 4:
        raise uncovered(node, "of other than four axes")
    _, height, width, channels = state.tensor(x).shape
    out, *window, inner = state.tensor(w).shape
    groups = channels if depthwise else channels // max(inner, 1)
    if min(channels, inner, out, groups) < 1 or (inner % channels if depthwise else channels % inner or out % groups):
        raise ConversionError(f"{node.kind}: the kernel {list(state.tensor(w).shape)} does not fit {channels} channels")
    perm = (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)
    dilations = [int(node.options["DilationHFactor"]), int(node.options["DilationWFactor"])]
    module = module_id(state.tensor(w).name, state.tensor(y).name)
    kernel = state.frozen(w, f"{module}.weight", perm, perm[0])
    attributes = window_attributes(node, (height, width), window, dilations)
    made = state.op.Conv(
        state.first(x), kernel, *bias(state, rest, module), kernel_shape=window, dilations=dilations, group=groups,
        **attributes,
    )  # fmt: skip
    made.dtype = ir.DataType.FLOAT
    state.put(y, activated(state, node, made), first=True)


def bias(state: Translation, rest: list[int], module: str) -> list[ir.Value]:
    """The bias as an input list, empty where there is none; int32 codes are made real."""
    return [state.frozen(b, f"{module}.bias") for b in rest[:1] if b >= 0]


@translation(TRANSPOSED_WITH_BIAS)
def transposed_with_bias(state: Translation, node: Operator) -> None:
    """MediaPipe's own: three int32 (padding, stride along the width, along the height)."""
    x, w, *rest = node.inputs
    if len(node.custom) < 12:
        raise ConversionError(f"{node.kind} has no options: the file is damaged")
    padding, along_width, along_height = struct.unpack_from("<iii", node.custom)
    _transposed(state, node, (x, w, rest), [along_height, along_width], padding == 1)


def _transposed(
    state: Translation, node: Operator, operands: tuple[int, int, list[int]], strides: list[int], same: bool
) -> None:
    (x, w, rest), (y,) = operands, node.outputs
    if state.rank(x) != 4 or state.rank(w) != 4 or state.rank(y) != 4 or min(strides) < 1 or max(strides) > 1 << 16:
        raise uncovered(node, "of other than four axes, or with strides that are not positive")
    inputs, outputs = state.tensor(x).shape[1:3], state.tensor(y).shape[1:3]
    window = list(state.tensor(w).shape[1:3])
    begins, ends, more = [], [], []
    for n, out, k, s in zip(inputs, outputs, window, strides, strict=True):
        full = (n - 1) * s + k
        total = max(full - out, 0) if same else 0
        begins.append(total // 2)
        ends.append(total - total // 2)
        more.append(out - full + total)
    if any(not 0 <= m < s for m, s in zip(more, strides, strict=True)):
        raise ConversionError(f"{node.kind}: its output {list(outputs)} does not follow from its input {list(inputs)}")
    module = module_id(state.tensor(w).name, state.tensor(y).name)
    kernel = state.frozen(w, f"{module}.weight", (3, 0, 1, 2))
    made = state.op.ConvTranspose(
        state.first(x), kernel, *bias(state, rest, module), kernel_shape=window, strides=strides,
        pads=begins + ends, output_padding=more,
    )  # fmt: skip
    made.dtype = ir.DataType.FLOAT
    state.put(y, activated(state, node, made), first=True)
