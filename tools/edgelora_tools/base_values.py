"""A graph without inputs that tells what the base's own weights and biases are, from the file that all graphs share."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgelora.manifest import TRANSPOSED
from edgelora.methods.base import BASE_BIAS, BASE_WEIGHT
from edgelora_tools.insertion import Site


def values_graph(sites: Sequence[Site], opset: int) -> ir.Model | None:
    """`POINT.base_weight` and `POINT.base_bias` of every place that has them in real numbers; None if none has.

    They are initializers and outputs at once: nothing is computed, and a reader is given what it asks for. A matrix
    that lies as `[out, in]` is called `POINT.base_weight.T`.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="values")
    for site in sites:
        use = site.uses[0]
        turned = TRANSPOSED if use.is_transposed else ""
        told = {f"{site.point.id}.{BASE_WEIGHT}{turned}": use.weight}
        if site.point.bias:
            told[f"{site.point.id}.{BASE_BIAS}"] = use.bias
        for name, value in told.items():
            if value is not None and value.const_value is not None and name not in graph.initializers:
                array = value.const_value.numpy()
                tensor = ir.tensor(array, name=name)
                shown = ir.Value(
                    name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor
                )
                graph.register_initializer(shown)
                graph.outputs.append(shown)
    return ir.Model(graph, ir_version=10) if graph.outputs else None
