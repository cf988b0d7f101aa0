"""The base with adapters and a head: what every graph of a bundle begins as; for inference and for mixed batches."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora.manifest import InsertionPoint, TensorSpec
from edgelora_tools.backward import values_read
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites import COMPOSITES
from edgelora_tools.composites.causal_attend import LOWERED as BLOCKS
from edgelora_tools.composites.quantized import QUANTIZED
from edgelora_tools.composites.token_loss import TOKEN_LOSS
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.heads import TaskOutput, attach_task
from edgelora_tools.lowering import Lowered, lower_nodes
from edgelora_tools.methods import LORA, AdapterMethod
from edgelora_tools.methods.lora import OP_TYPE
from edgelora_tools.mixed import stack_adapters
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.add_in_product import add_in_product, of_adapters
from edgelora_tools.passes.fold_batch_norms import fold_batch_norms
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.gelu_slopes import LOWERED as SLOPES
from edgelora_tools.passes.heads import LOWERED as HEADS
from edgelora_tools.passes.point_kernels import LOWERED as POINT_KERNELS
from edgelora_tools.passes.rows import LOWERED as ROWS
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.passes.whole_sums import whole_sums

LOWERED: dict[str, Lowered] = {
    OP_TYPE: LORA,
    **{one.op_type: one for one in (*COMPOSITES, *QUANTIZED, TOKEN_LOSS)},
    **ROWS,
    **HEADS,
    **SLOPES,
    **POINT_KERNELS,
    **BLOCKS,
}


@dataclass(frozen=True)
class Adapted:
    """A graph with adapters in it: the model, its builder, the task's outputs, the adapter's inputs."""

    model: ir.Model
    op: OpBuilder
    task: TaskOutput
    adapter_inputs: tuple[ir.Value, ...]


def prune(model: ir.Model, options: ConvertOptions) -> ir.Model:
    """A copy of the base that is only what the task needs; its outputs are those that the task reads."""
    base = model.clone()
    marked = base.clone()
    outputs = set(marked.graph.outputs)
    task = attach_task(
        GraphBuilder(free_names(marked.graph)).op, marked.graph, options.head_task, options.pooling, options.output
    )
    read = {v.name for v in _upstream(task.outputs.values(), stop=outputs) & outputs}
    needed = {v.name for v in _upstream(task.outputs.values())}
    base.graph.outputs[:] = [v for v in base.graph.outputs if v.name in read]
    common.RemoveUnusedNodesPass()(base)
    base.graph.inputs[:] = [v for v in base.graph.inputs if v.name in needed]
    return base


def _upstream(values: Iterable[ir.Value], stop: Container[ir.Value] = ()) -> set[ir.Value]:
    """The values that `values` depend on, themselves among them; nothing beyond those of `stop`."""
    front, seen = list(values), set[ir.Value]()
    while front:
        value = front.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None and value not in stop:
            front.extend(values_read(node))
    return seen


def adapt(
    base: ir.Model, points: Sequence[InsertionPoint], options: ConvertOptions, method: AdapterMethod, dropout: bool
) -> Adapted:
    """A copy of the base with the method's adapter at every point and the task's head."""
    model = base.clone()
    op = GraphBuilder(free_names(model.graph)).op
    placed = method.place(op, method.sites(model, points), dropout)
    fold_batch_norms(model, op)
    task = attach_task(op, model.graph, options.head_task, options.pooling, options.output, placed.virtual)
    head = () if task.head is None else (task.head.weight, task.head.bias)
    model.graph.outputs.clear()
    return Adapted(model, op, task, (*placed.inputs, *(v for v in model.graph.inputs if v.name in head)))


def forward_graph(
    base: ir.Model, points: Sequence[InsertionPoint], options: ConvertOptions, method: AdapterMethod = LORA
) -> Adapted:
    """The inference graph: adapter tensors are inputs, LoRA's of symbolic rank."""
    adapted = adapt(base, points, options, method, dropout=False)
    set_outputs(adapted, adapted.task.outputs)
    lower_nodes(adapted.model.graph, adapted.op, LOWERED)
    whole_sums(adapted.model)
    add_in_product(adapted.model, of_adapters)
    tidy(adapted.model)
    return adapted


def mixed_graph(
    base: ir.Model, points: Sequence[InsertionPoint], options: ConvertOptions, batch: str | None
) -> ir.Model | None:
    """The inference graph with an adapter per row; None where a point takes none (`mixed.py`)."""
    adapted = adapt(base, points, options, LORA, dropout=False)
    set_outputs(adapted, adapted.task.outputs)
    task, graph = adapted.task, adapted.model.graph
    prediction = next((v for v in graph.outputs if v.name == "logits"), None)
    if batch is None or not stack_adapters(
        adapted.model, adapted.op, adapted.adapter_inputs, task.head, prediction, batch
    ):
        return None
    lower_nodes(graph, adapted.op, LOWERED)
    return tidy(whole_sums(adapted.model))


def standard(base: ir.Model) -> ir.Model:
    """A copy of the base in standard ONNX, without composites."""
    model = base.clone()
    lower_nodes(model.graph, GraphBuilder(free_names(model.graph)).op, LOWERED)
    return tidy(model)


def set_outputs(adapted: Adapted, outputs: dict[str, ir.Value]) -> None:
    """The graph returns `outputs`, by these names; an input, or a value that is there already, as a copy."""
    graph = adapted.model.graph
    graph.outputs.clear()
    for name, value in outputs.items():
        if value.producer() is None or value in graph.outputs:
            value = adapted.op.Identity(value)
        value.name = name
        graph.outputs.append(value)


def shape_names(value: ir.Value) -> tuple[int | str, ...]:
    return tuple("?" if d is None else d for d in dims(value))


def specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(v.name), v.dtype.numpy().name, shape_names(v)) for v in values if v.dtype is not None)
