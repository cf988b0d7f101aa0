"""Outputs of bodies are computed in them: ONNX Runtime takes no body that returns a value from outside."""

from __future__ import annotations

import onnx_ir as ir


def own_outputs(model: ir.Model) -> ir.Model:
    """Put an Identity wherever a body returns a value from outside, an input of its own, or one value twice."""
    for graph in model.graphs():
        if graph is model.graph:
            continue
        for position, value in enumerate(graph.outputs):
            producer = value.producer()
            if producer is None or producer.graph is not graph or value in list(graph.outputs)[:position]:
                copy = ir.node("Identity", [value])
                y = copy.outputs[0]
                y.name, y.type, y.shape = f"{value.name}.{graph.name or 'body'}.{position}", value.type, value.shape
                graph.append(copy)
                graph.outputs[position] = y
    return model
