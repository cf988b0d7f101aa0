"""Bodies of If and Scan: graphs inside a graph, emitted by rules whose backward pass repeats or chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder

from edgelora_tools.gradients.shapes import dims


def new_body(op: OpBuilder, name: str) -> OpBuilder:
    """Emits into a new, empty graph inside that of `op`, which may read what stands outside.

    `name` must be new among the bodies that are made before the next node of `op`: values in it carry it.
    """
    outside = op.builder.graph
    path = f"{outside.name or 'graph'}.{name}{outside.num_nodes()}"
    graph = ir.Graph([], [], nodes=[], opset_imports=dict(outside.opset_imports), name=path)
    builder = GraphBuilder(graph, parent=op.builder)
    builder.push_module(path)
    return builder.op


def body_input(op: OpBuilder, like: ir.Value, without_axis: int | None = None) -> ir.Value:
    """A new input of the body that `op` emits into, of the type and shape of `like`, or of a slice of it."""
    graph = op.builder.graph
    value = ir.Value(name=f"{graph.name}.in{len(graph.inputs)}", type=like.type)
    if like.shape is not None:
        sizes = list(dims(like))
        if without_axis is not None:
            del sizes[without_axis]
        value.shape = ir.Shape(sizes)
    graph.inputs.append(value)
    return value


def close_body(op: OpBuilder, results: Sequence[ir.Value]) -> ir.Graph:
    """End the body: its outputs are `results`, each a value of its own that the body computes."""
    graph = op.builder.graph
    for result in results:
        producer = result.producer()
        if producer is None or producer.graph is not graph or result in graph.outputs:
            copy = op.Identity(result)
            copy.type, copy.shape = result.type, result.shape
            result = copy
        graph.outputs.append(result)
    return graph


def scan(
    op: OpBuilder,
    step: Callable[..., Sequence[ir.Value]],
    states: Sequence[ir.Value],
    inputs: Sequence[ir.Value],
    backwards: bool = False,
) -> list[ir.Value]:
    """Repeat `step(op, *states, *elements) -> (*next states, *emitted)` along the first axis of `inputs`.

    Returns the last states and what was emitted, stacked: the element at t was emitted at t, also if the
    steps go backwards from the end.
    """
    inner = new_body(op, "scan")
    formals = [body_input(inner, s) for s in states] + [body_input(inner, x, without_axis=0) for x in inputs]
    body = close_body(inner, step(inner, *formals))
    emitted = len(body.outputs) - len(states)
    made = op.Scan(
        *states,
        *inputs,
        body=body,
        num_scan_inputs=len(inputs),
        **({"scan_input_directions": [1] * len(inputs)} if backwards else {}),
        **({"scan_output_directions": [1] * emitted} if backwards and emitted else {}),
        _outputs=len(body.outputs),
    )
    outputs = [made] if isinstance(made, ir.Value) else list(made)
    length = dims(inputs[0])[0]
    for position, (y, inside) in enumerate(zip(outputs, body.outputs, strict=True)):
        source = states[position] if position < len(states) else inside
        y.type = source.type
        if source.shape is not None:
            y.shape = ir.Shape(list(dims(source)) if position < len(states) else [length, *dims(source)])
    return outputs
