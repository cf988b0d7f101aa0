"""Pooling: a window's mean, of what lies inside the picture alone, or its largest."""

from __future__ import annotations

from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.operators.activations import activated
from edgelora_tools.sources.tflite.operators.convolution import window_attributes
from edgelora_tools.sources.tflite.operators.registry import translation, uncovered
from edgelora_tools.sources.tflite.translation import Translation


@translation("AVERAGE_POOL_2D", "MAX_POOL_2D")
def pool(state: Translation, node: Operator) -> None:
    """Y = the mean or the maximum of every window of X."""
    (x,), (y,) = node.inputs, node.outputs
    if state.rank(x) != 4:
        raise uncovered(node, "of other than four axes")
    window = [int(node.options["FilterHeight"]), int(node.options["FilterWidth"])]
    attributes = window_attributes(node, state.tensor(x).shape[1:3], window, [1, 1])
    average = node.kind == "AVERAGE_POOL_2D"
    op = state.op.AveragePool if average else state.op.MaxPool
    made = op(state.first(x), kernel_shape=window, **attributes, **({"count_include_pad": 0} if average else {}))
    state.put(y, activated(state, node, made), True, None if average else x)
