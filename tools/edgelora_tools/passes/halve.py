"""A training graph in two: up to the outputs, and from their cotangents on, for a loss of the host in between.

The first half returns, beside the outputs, what the second needs of it, and nothing is computed twice but views.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.convenience
import onnx_ir.passes.common as common

from edgelora_tools.backward import values_read
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.passes.value_sizes import VIEWS

_SIZES = frozenset({"Shape", "Size"})  # the sizes of what is large are kept in place of it


def halve(model: ir.Model, outputs: Sequence[str]) -> tuple[ir.Model, ir.Model, tuple[str, ...]] | None:
    """Copies of both halves, and what the second takes of the first; None if something there is no tensor.

    `outputs` are those of the graph's outputs that the first half returns, the others are the second's. Values must
    have their types and shapes.
    """
    first = model.clone()
    common.CommonSubexpressionEliminationPass()(first)
    common.RemoveUnusedNodesPass()(first)
    common.NameFixPass()(first)
    second = first.clone()
    crossing = _crossing(first.graph, set(outputs))
    if any(not isinstance(x.type, ir.TensorType) or x.shape is None for x in crossing):
        return None
    kept = tuple(str(x.name) for x in crossing)
    own = [y for y in first.graph.outputs if y.name in outputs]
    first.graph.outputs[:] = [*own, *(x for x in crossing if x not in own)]
    second.graph.outputs[:] = [y for y in second.graph.outputs if y.name not in outputs]
    made = {str(y.name): y for node in second.graph for y in node.outputs}
    for name in kept:
        _take(second.graph, made[name])
    for half in (first, second):
        tidy(half)
        half.graph.inputs[:] = [x for x in half.graph.inputs if x.uses()]
    return first, second, kept


def _crossing(graph: ir.Graph, outputs: set[str]) -> list[ir.Value]:
    """What the nodes up to the outputs make and others read, in the order of the graph."""
    wanted = {y for y in graph.outputs if y.name in outputs}
    before = set[ir.Node]()
    for node in reversed(list(graph)):
        if any(y in wanted for y in node.outputs):
            before.add(node)
            wanted.update(values_read(node))
    made = {y for node in before for y in node.outputs}
    before |= {node for node in graph if node.op_type in _SIZES and node.inputs[0] in made}
    after = [node for node in reversed(list(graph)) if node not in before]
    crossing = dict[ir.Value, None]()
    for node in after:  # grows by the views, which the second half makes itself
        for x in values_read(node):
            producer = x.producer()
            if producer in before and producer is not None and x not in crossing:
                if producer.op_type in VIEWS:
                    after.append(producer)
                else:
                    crossing[x] = None
    return [y for node in graph for y in node.outputs if y in crossing]


def _take(graph: ir.Graph, value: ir.Value) -> None:
    """Let the graph take the value as an input instead of making it."""
    name, value.name = value.name, f"{value.name}.made"
    taken = ir.Value(name=name, type=value.type, shape=value.shape)
    ir.convenience.replace_all_uses_with(value, taken)
    graph.inputs.append(taken)
