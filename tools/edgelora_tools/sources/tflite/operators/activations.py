"""Activations: operators of their own, and those that TFLite fuses into the operator before them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import tflite

from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.operators.registry import translation, uncovered
from edgelora_tools.sources.tflite.translation import Translation

_FUSED = {
    tflite.ActivationFunctionType.RELU: "RELU",
    tflite.ActivationFunctionType.RELU6: "RELU6",
}


def activated(state: Translation, node: Operator, y: ir.Value) -> ir.Value:
    """The activation that is fused into `node`."""
    told = node.options.get("FusedActivationFunction", tflite.ActivationFunctionType.NONE)
    if told == tflite.ActivationFunctionType.NONE:
        return y
    if told not in _FUSED:
        raise uncovered(node, f"with the fused activation {told}")
    return _apply(state, _FUSED[told], y)


def _apply(state: Translation, kind: str, x: ir.Value) -> ir.Value:
    op = state.op
    match kind:
        case "RELU":
            y = op.Relu(x)
        case "RELU6":
            y = op.Clip(x, 0.0, 6.0)
        case "LOGISTIC":
            y = op.Sigmoid(x)
        case "HARD_SWISH":
            y = op.HardSwish(x)
        case _:
            raise AssertionError(kind)
    y.shape, y.dtype = x.shape, x.dtype
    return y


@translation("RELU", "LOGISTIC", "HARD_SWISH")
def activation(state: Translation, node: Operator) -> None:
    """Y = f(X), in whatever layout X is."""
    x, y = node.inputs[0], node.outputs[0]
    first = state.is_first(x)
    state.put(y, _apply(state, node.kind, state.first(x) if first else state.last(x)), first)


@translation("PRELU")
def prelu(state: Translation, node: Operator) -> None:
    """Y = X where X ≥ 0, else α·X; α broadcasts against X without its batch."""
    x, alpha = node.inputs
    slope = state.constant(alpha)
    if slope is None:
        raise uncovered(node, "with computed slopes")
    first = state.is_first(x) and slope.ndim <= 3
    if first:
        slope = slope.reshape([1] * (3 - slope.ndim) + list(slope.shape)).transpose(2, 0, 1)
    kept = state.initializer(np.ascontiguousarray(slope), f"slope.{alpha}.{first}")
    state.put(node.outputs[0], state.op.PRelu(state.first(x) if first else state.last(x), kept), first)


@translation("SOFTMAX")
def softmax(state: Translation, node: Operator) -> None:
    """Y = softmax(β·X) over the last axis."""
    x, beta = state.last(node.inputs[0]), float(node.options.get("Beta", 1.0))
    scaled = x if beta == 1.0 else state.op.Mul(x, beta)
    state.put(node.outputs[0], state.op.Softmax(scaled, axis=-1))
