"""Reductions along constant axes."""

from __future__ import annotations

from edgelora.errors import ConversionError
from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.operators.registry import translation
from edgelora_tools.sources.tflite.translation import TO_LAST, Translation

_REDUCTIONS = {
    "MEAN": "ReduceMean",
    "SUM": "ReduceSum",
    "REDUCE_MAX": "ReduceMax",
    "REDUCE_MIN": "ReduceMin",
}


@translation(*_REDUCTIONS)
def reduction(state: Translation, node: Operator) -> None:
    """Y = X reduced along axes. With the channels second as long as that leaves the other axes in their order."""
    x, axes_at = node.inputs
    rank, keep = state.rank(x), bool(node.options.get("KeepDims", False))
    axes = state.numbers(axes_at, "the axes of a reduction")
    if any(not -rank <= a < rank for a in axes):
        raise ConversionError(f"{node.kind} reduces the axes {axes} of {rank}")
    axes = sorted({a % rank for a in axes})
    first = state.is_first(x) and (keep or {1, 2} <= set(axes))
    if first:
        axes = sorted(TO_LAST[a] for a in axes)
    value = state.first(x) if first else state.last(x)
    made = getattr(state.op, _REDUCTIONS[node.kind])(value, state.op.Constant(value_ints=axes), keepdims=int(keep))
    state.put(node.outputs[0], made, first and keep)
