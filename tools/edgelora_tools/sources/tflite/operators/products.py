"""Fully connected layers: weights are [out, in], and X is taken as rows of `in`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgelora.errors import ConversionError
from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.names import module_id
from edgelora_tools.sources.tflite.operators.activations import activated
from edgelora_tools.sources.tflite.operators.convolution import bias
from edgelora_tools.sources.tflite.operators.registry import translation, uncovered
from edgelora_tools.sources.tflite.translation import Translation


@translation("FULLY_CONNECTED")
def fully_connected(state: Translation, node: Operator) -> None:
    """Y = X·Wᵀ + B, of rows or, where the number of axes is kept, of everything but the last axis."""
    x, w, *rest = node.inputs
    (y,) = node.outputs
    if node.options.get("WeightsFormat", 0) or state.rank(w) != 2:
        raise uncovered(node, "with weights in another order")
    inner = state.tensor(w).shape[1]
    if not state.tensor(x).shape or not inner or np.prod(state.tensor(x).shape) % inner:
        raise ConversionError(f"{node.kind}: {list(state.tensor(x).shape)} are no rows of {inner} numbers")
    module = module_id(state.tensor(w).name, state.tensor(y).name)
    if node.options.get("KeepNumDims") and state.rank(x) != 2:
        weight = state.frozen(w, f"{module}.weight", (1, 0))
        made = state.op.MatMul(state.last(x), weight)
        for b in bias(state, rest, module):
            made = state.op.Add(made, b)
    else:
        rows = state.last(x)
        if state.rank(x) != 2 or state.tensor(x).shape[-1] != inner:
            rows = state.op.Reshape(rows, state.op.Constant(value_ints=[-1, inner]))
        weight = state.frozen(w, f"{module}.weight")
        made = state.op.Gemm(rows, weight, *bias(state, rest, module), transB=1)
        if state.rank(y) != 2:
            made = state.op.Reshape(made, state.target(y))
    made.dtype = ir.DataType.FLOAT
    state.put(y, activated(state, node, made))
