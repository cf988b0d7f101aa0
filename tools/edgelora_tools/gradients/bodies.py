"""Bodies of If, Loop and Scan: building them, and copying what they compute into another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.shapes import dims

Copies = Callable[[ir.Value], ir.Value]


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


def replay(op: OpBuilder, body: ir.Graph, given: Mapping[ir.Value, ir.Value]) -> tuple[list[ir.Node], Copies]:
    """Emit a copy of every node of `body`, with its inputs replaced as `given` says.

    Returns the copies, and a function from a value of the body to its copy; what the body takes from
    outside stands for itself. Shapes are inferred anew, from those of the given inputs.
    """
    copies = dict(given)
    path = op.builder.graph.name
    for value in body.initializers.values():
        if value.const_value is not None and value not in copies:
            copies[value] = op.builder.initializer(value.const_value, f"{path}.{value.name}")
    nodes = copy_nodes(op, body, copies)
    return nodes, lambda value: copies.get(value, value)


def copy_nodes(op: OpBuilder, nodes: Iterable[ir.Node], copies: dict[ir.Value, ir.Value]) -> list[ir.Node]:
    """Emit a copy of every node, reading `copies` where these have an input, and add its outputs to them."""
    path, made = op.builder.graph.name, []
    for node in nodes:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if x is None else copies.get(x, x) for x in node.inputs],
            [_with_copies(attribute, copies) for attribute in node.attributes.values()],
            num_outputs=len(node.outputs),
            version=op.builder.graph.opset_imports.get(node.domain),
            name=f"{path}/{node.name}",
        )
        for y, source in zip(copy.outputs, node.outputs, strict=True):
            y.name = f"{path}.{source.name}" if source.name else ""
        op.builder.add_node(copy)
        for y, source in zip(copy.outputs, node.outputs, strict=True):
            y.type = y.type or source.type
            if y.shape is None and source.shape is not None:
                y.shape = ir.Shape([d if isinstance(d, int) else None for d in dims(source)])
            copies[source] = y
        made.append(copy)
    return made


def _with_copies(attribute: ir.Attr, copies: Mapping[ir.Value, ir.Value]) -> ir.Attr:
    """The attribute; if it is a body, a copy of it that reads copies of what it takes from outside."""
    if attribute.type != ir.AttributeType.GRAPH:
        return attribute
    body = attribute.as_graph().clone(allow_outer_scope_values=True)
    for node in body.all_nodes():
        for position, x in enumerate(node.inputs):
            if x is not None and x in copies:
                node.replace_input_with(position, copies[x])
    return ir.AttrGraph(attribute.name, body)


def remove_dead_nodes(body: ir.Graph) -> None:
    """Remove the nodes of a closed body that its outputs do not need."""
    for node in reversed(list(body)):
        if not any(y.uses() or y.is_graph_output() for y in node.outputs):
            body.remove(node, safe=True)
