"""BatchNormalization of frozen statistics goes into the convolutions before it, adapters and all.

With f = γ/√(σ² + ε) and s = β − f∘μ, f∘S + s of a sum S of convolutions and biases is the sum of the same with every
kernel and bias multiplied by f, and s in one bias. What is frozen is multiplied here. An adapter's B' is an input and
is multiplied when the graph runs: it keeps the meaning that it has before the normalization, PEFT's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray
from onnxscript import OpBuilder

from edgelora_tools.frozen import is_real
from edgelora_tools.gradients.shapes import annotate, dims, rank

Slot = tuple[ir.Node, int]  # an input of a node


@dataclass(frozen=True)
class _Sum:
    """What a sum of convolutions reads: the slots of kernels, biases and vectors, and a convolution for s."""

    slots: tuple[Slot, ...]
    last: ir.Node


def fold_batch_norms(model: ir.Model, op: OpBuilder) -> None:
    """Fold every BatchNormalization that follows a convolution, or a sum of them, which nothing else reads.

    `op` builds the model's graph.
    """
    for node in [node for node in model.graph if _is_frozen_norm(node)]:
        x = node.inputs[0]
        assert x is not None
        found = _sum(x)
        if found is not None:
            _fold(op, node, x, found)
    common.TopologicalSortPass()(model)


def _is_frozen_norm(node: ir.Node) -> bool:
    return (
        node.op_type == "BatchNormalization"
        and node.domain in ("", "ai.onnx")
        and not node.attributes.get_int("training_mode", 0)
        and all(map(is_real, node.inputs[1:5]))
    )


def _sum(value: ir.Value) -> _Sum | None:
    """The sum of convolutions, and of one value a channel, that the value is; None where others read parts of it."""
    node = value.producer()
    if node is None or value.is_graph_output() or len(value.uses()) != 1 or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Conv":
        return _Sum(tuple((node, i) for i, x in enumerate(node.inputs) if i > 0 and x is not None), node)
    if node.op_type != "Add":
        return None
    parts = [None if x is None else _sum(x) for x in node.inputs]
    for here, other in ((0, 1), (1, 0)):
        part, vector = parts[here], node.inputs[other]
        if part is not None and vector is not None and parts[other] is None and _is_per_channel(vector, value):
            return _Sum((*part.slots, (node, other)), part.last)
    first, second = parts
    return None if first is None or second is None else _Sum((*first.slots, *second.slots), first.last)


def _is_per_channel(vector: ir.Value, image: ir.Value) -> bool:
    """Whether a value that is an input or frozen, `[C, 1, …]`, is one number for each channel of the image."""
    if vector.producer() is not None or vector.shape is None or image.shape is None:
        return False
    return dims(vector) == (dims(image)[1], *[1] * (rank(image) - 2))


def _fold(op: OpBuilder, norm: ir.Node, x: ir.Value, found: _Sum) -> None:
    gamma, beta, mean, variance = (_numbers(v) for v in norm.inputs[1:5])
    f = gamma / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    for node, place in found.slots:
        value = node.inputs[place]
        assert value is not None
        node.replace_input_with(place, _scaled(op, value, f))
    last, s = found.last, beta - f * mean
    bias = last.inputs[2] if len(last.inputs) > 2 else None
    if bias is None:
        bias = _constant(op, s, f"{norm.inputs[2].name}.folded" if norm.inputs[2] is not None else "folded")
    elif bias.const_value is not None:
        bias = _constant(op, bias.const_value.numpy().astype(np.float64) + s, str(bias.name))
    else:
        bias = annotate(op.Add(bias, _constant(op, s, f"{last.name}.shift")), bias)
    last.resize_inputs(3)
    last.replace_input_with(2, bias)
    y = norm.outputs[0]
    name, x.shape, x.type = y.name, y.shape, y.type
    y.replace_all_uses_with(x, replace_graph_outputs=True)
    norm.graph.remove(norm, safe=True)  # pyright: ignore[reportOptionalMemberAccess]
    x.name = name


def _scaled(op: OpBuilder, value: ir.Value, f: NDArray[np.float64]) -> ir.Value:
    """The value, `[C, …]`, with each channel multiplied by its f, once where norms follow one another."""
    factors = f.reshape(-1, *[1] * (rank(value) - 1))
    node = value.producer()
    if node is not None and node.op_type == "Mul" and len(value.uses()) == 1:
        before, own = node.inputs
        if before is not None and own is not None and own.const_value is not None and dims(own) == factors.shape:
            return _scaled(op, before, own.const_value.numpy().astype(np.float64).reshape(-1) * f)
    if value.const_value is None:
        return annotate(op.Mul(value, _constant(op, factors, f"{value.name}.factors")), value)
    return _constant(op, value.const_value.numpy().astype(np.float64) * factors, f"{value.name}.folded")


def _numbers(value: ir.Value | None) -> NDArray[np.float64]:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy().astype(np.float64)


def _constant(op: OpBuilder, array: NDArray[np.float64], name: str) -> ir.Value:
    """A frozen float32 tensor under a free name."""
    known, free, n = op.builder.graph.initializers, name, 1
    while free in known:
        n += 1
        free = f"{name}_{n}"
    return op.builder.initializer(ir.tensor(array.astype(np.float32), name=free))
