"""Make the model that onnxsim's trainer takes, in that rival's environment.

`python -m benchmarks.rivals.onnxsim_model MODEL BATCH LENGTH CLASSES OUTPUT PARAMETER...`

Its trainer wants every shape fixed, a scalar loss in the graph, and operators for which it has gradients: GELU is
written out with Erf, and the loss as Σ targets·(log Σ exp z - z), whose targets `[batch, classes]` hold 1/n at the
labels of the n samples.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

TARGETS, LOSS = "targets", "loss"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
make: Any = onnx.helper


def main() -> None:
    onnxsim: Any = importlib.import_module("onnxsim")  # of that environment alone: no types
    path, batch, length, classes, output, *parameters = sys.argv[1:]
    model = onnx.load(path)
    write_out_gelu(model.graph)
    add_loss(model.graph, int(batch), int(classes))
    sizes = [int(batch), int(length)]
    for value in model.graph.input:
        if value.name in INPUTS:
            del value.type.tensor_type.shape.dim[:]
            for size in sizes:
                value.type.tensor_type.shape.dim.add().dim_value = size
    trained = as_inputs(model.graph, parameters)
    shapes = {value.name: sizes for value in model.graph.input if value.name in INPUTS}
    simplified, sound = onnxsim.simplify(model, overwrite_input_shapes=shapes)
    if not sound:
        raise SystemExit("onnxsim's simplified model differs from the source")
    kept = [value for value in simplified.graph.input if value.name not in parameters]
    del simplified.graph.input[:]
    simplified.graph.input.extend(kept)
    simplified.graph.initializer.extend(trained)
    constants_to_initializers(simplified.graph)
    simplified = onnx.shape_inference.infer_shapes(simplified, strict_mode=True)
    flatten_to_reshape(simplified.graph)
    onnx.save(simplified, output)


def as_inputs(graph: Any, names: Sequence[str]) -> list[Any]:
    """Make these initializers inputs, so that nothing is folded into them, and return them."""
    found = [tensor for tensor in graph.initializer if tensor.name in names]
    for tensor in found:
        graph.initializer.remove(tensor)
        graph.input.append(make.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return found


def constants_to_initializers(graph: Any) -> None:
    """The trainer has no rule for Constant, which has no inputs."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)


def flatten_to_reshape(graph: Any) -> None:
    """The trainer has no rule for Flatten; every shape is known by now."""
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info}
    for node in graph.node:
        if node.op_type == "Flatten":
            size = np.array(shapes[node.output[0]], np.int64)
            graph.initializer.append(onnx.numpy_helper.from_array(size, f"{node.output[0]}.size"))
            node.CopyFrom(make.make_node("Reshape", [node.input[0], f"{node.output[0]}.size"], [node.output[0]]))


def write_out_gelu(graph: Any) -> None:
    """GELU(x) = x/2·(1 + erf(x/√2))."""
    nodes: list[Any] = []
    for name, value in (("half", 0.5), ("one", 1.0), ("root", math.sqrt(0.5))):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), f"constant of GELU, {name}"))
    for node in graph.node:
        if node.op_type != "Gelu":
            nodes.append(node)
            continue
        (x,), (y,) = node.input, node.output
        nodes += [
            make.make_node("Mul", [x, "constant of GELU, root"], [f"{y}.scaled"]),
            make.make_node("Erf", [f"{y}.scaled"], [f"{y}.erf"]),
            make.make_node("Add", [f"{y}.erf", "constant of GELU, one"], [f"{y}.gate"]),
            make.make_node("Mul", [x, "constant of GELU, half"], [f"{y}.half"]),
            make.make_node("Mul", [f"{y}.half", f"{y}.gate"], [y]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def add_loss(graph: Any, batch: int, classes: int) -> None:
    """The mean cross-entropy of the graph's output, beside it."""
    logits = graph.output[0].name
    for name, axes in (("loss.last", [1]), ("loss.all", [0, 1])):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), name))
    graph.input.append(make.make_tensor_value_info(TARGETS, onnx.TensorProto.FLOAT, [batch, classes]))
    graph.node.extend(
        [
            make.make_node("Exp", [logits], ["loss.exp"]),
            make.make_node("ReduceSum", ["loss.exp", "loss.last"], ["loss.sum"], keepdims=1),
            make.make_node("Log", ["loss.sum"], ["loss.log"]),
            make.make_node("Sub", ["loss.log", logits], ["loss.each"]),
            make.make_node("Mul", ["loss.each", TARGETS], ["loss.weighted"]),
            make.make_node("ReduceSum", ["loss.weighted", "loss.all"], [LOSS], keepdims=0),
        ]
    )
    graph.output.append(make.make_tensor_value_info(LOSS, onnx.TensorProto.FLOAT, []))


if __name__ == "__main__":
    main()
