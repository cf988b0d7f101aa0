"""Between codes, half precision, sparse values and real numbers."""

from __future__ import annotations

import numpy as np

from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.operators.registry import translation, uncovered
from edgelora_tools.sources.tflite.sparsity import dense
from edgelora_tools.sources.tflite.translation import Translation


@translation("DEQUANTIZE")
def dequantize(state: Translation, node: Operator) -> None:
    """Constants become real; codes that are computed are real numbers here already."""
    x, y = node.inputs[0], node.outputs[0]
    known = state.constant(x)
    if known is not None and not state.tensor(y).holds_codes:
        state.put_constant(y, known.shape, lambda: known.astype(np.float32, copy=False))
        return
    first = state.is_first(x)
    state.put(y, state.first(x) if first else state.last(x), first)


@translation("DENSIFY")
def densify(state: Translation, node: Operator) -> None:
    """A sparse constant as a dense one."""
    x = state.tensor(node.inputs[0])
    if x.data is None or x.sparsity is None or x.holds_codes:
        raise uncovered(node, "of what is no sparse constant of real numbers")
    state.put_constant(node.outputs[0], x.shape, lambda: dense(x).astype(np.float32, copy=False))
