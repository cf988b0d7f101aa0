"""The graphs of a bundle: the base with adapters and a head, for inference, for mixed batches, for training."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import GraphBuilder, OpBuilder

from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConfigError, ConversionError
from edgelora.manifest import (
    GraphSet,
    InsertionPoint,
    LostPoint,
    Prefix,
    Recomputed,
    TensorSpec,
    TrainingGraph,
)
from edgelora_tools.backward import Gradients, values_read, walk_back
from edgelora_tools.composites import COMPOSITES
from edgelora_tools.composites.block_product import DECODED_PRODUCT
from edgelora_tools.composites.quantized import QUANTIZED
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.heads import TaskOutput, attach_task
from edgelora_tools.insertion import Site, find_sites
from edgelora_tools.losses import LOSSES, Loss, Seeds, loss_inputs
from edgelora_tools.lost_points import lost_points
from edgelora_tools.lowering import Lowered, lower_nodes
from edgelora_tools.measure_shapes import Sizes
from edgelora_tools.methods import LORA, AdapterMethod
from edgelora_tools.methods.lora import OP_TYPE
from edgelora_tools.mixed import stack_adapters
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.add_in_product import add_in_product, of_adapters, of_matrices
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.gelu_slopes import LOWERED as SLOPES
from edgelora_tools.passes.gelu_slopes import keep_slopes
from edgelora_tools.passes.heads import LOWERED as HEADS
from edgelora_tools.passes.heads import gather_heads
from edgelora_tools.passes.prefix import cut_before, last_blocks
from edgelora_tools.passes.rematerialize import COTANGENT as SEED
from edgelora_tools.passes.rematerialize import rematerialize
from edgelora_tools.passes.rows import LOWERED as ROWS
from edgelora_tools.passes.rows import gather_rows
from edgelora_tools.passes.scales import scale_products
from edgelora_tools.passes.share_inputs import share_inputs
from edgelora_tools.passes.slice_early import slice_early
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.skips import Skips

LOWERED: dict[str, Lowered] = {
    OP_TYPE: LORA,
    **{one.op_type: one for one in (*COMPOSITES, *QUANTIZED)},
    **ROWS,
    **HEADS,
    **SLOPES,
}


@dataclass(frozen=True)
class Trained:
    """A training graph: the model, its record, and the points that the loss does not reach; `again` holds less.

    There is no record, and nothing to train with the graph, if no gradient is left.
    """

    model: ir.Model
    record: TrainingGraph | None
    lost: tuple[LostPoint, ...]
    again: ir.Model | None = None


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
        GraphBuilder(free_names(marked.graph)).op, marked.graph, options.task, options.pooling, options.output
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
    """A copy of the base with the method's delta at every point and the task's head."""
    model = base.clone()
    wanted = {point.id for point in points}
    sites = [site for site in find_sites(model) if site.point.id in wanted]
    op = GraphBuilder(free_names(model.graph)).op
    inputs: list[ir.Value] = []
    for site in sites:
        inputs += _insert(op, site, method, dropout)
    common.TopologicalSortPass()(model)
    task = attach_task(op, model.graph, options.task, options.pooling, options.output)
    if task.head is not None:
        inputs += [v for v in model.graph.inputs if v.name in (task.head.weight, task.head.bias)]
    model.graph.outputs.clear()
    return Adapted(model, op, task, tuple(inputs))


def _insert(op: OpBuilder, site: Site, method: AdapterMethod, dropout: bool) -> list[ir.Value]:
    """y = base(x) becomes what the method makes of it (LoRA: y + delta(x ∘ mask)), and its readers read that."""
    inputs = [op.builder.input(s.name, ir.DataType.FLOAT, list(s.shape)) for s in method.inputs(site.point)]
    for call, use in enumerate(site.uses):
        y = use.output
        x = use.reader.inputs[0]  # as it is now: an earlier site may have put its delta there
        assert x is not None
        readers, is_output = list(y.uses()), y in op.builder.graph.outputs
        seen = x
        if dropout:
            name = f"{site.point.id}.mask" if call == 0 else f"{site.point.id}.mask.{call}"
            mask = op.builder.input(name, ir.DataType.UINT8, list(dims(x)))
            seen = op.Mul(x, op.Cast(mask, to=ir.DataType.FLOAT))
            seen.shape, seen.type = x.shape, x.type
        adapted = method.adapt(op, use, seen, y, inputs)
        adapted.shape, adapted.type = y.shape, y.type
        for node, position in readers:
            node.replace_input_with(position, adapted)
        if is_output:
            outputs = op.builder.graph.outputs
            name, y.name = y.name, f"{y.name}.base"
            adapted.name = name
            outputs[:] = [adapted if v is y else v for v in outputs]
    return inputs


def forward_graph(
    base: ir.Model, points: Sequence[InsertionPoint], options: ConvertOptions, method: AdapterMethod = LORA
) -> Adapted:
    """The inference graph: adapter tensors are inputs, LoRA's of symbolic rank."""
    adapted = adapt(base, points, options, method, dropout=False)
    _set_outputs(adapted, adapted.task.outputs)
    lower_nodes(adapted.model.graph, adapted.op, LOWERED)
    add_in_product(adapted.model, of_adapters)
    tidy(adapted.model)
    return adapted


def mixed_graph(
    base: ir.Model, points: Sequence[InsertionPoint], options: ConvertOptions, batch: str | None
) -> ir.Model | None:
    """The inference graph with an adapter per row; None where a point takes none (`mixed.py`)."""
    adapted = adapt(base, points, options, LORA, dropout=False)
    _set_outputs(adapted, adapted.task.outputs)
    task, graph = adapted.task, adapted.model.graph
    prediction = next((v for v in graph.outputs if v.name == "logits"), None)
    if batch is None or not stack_adapters(
        adapted.model, adapted.op, adapted.adapter_inputs, task.head, prediction, batch
    ):
        return None
    lower_nodes(graph, adapted.op, LOWERED)
    return tidy(adapted.model)


def standard(base: ir.Model) -> ir.Model:
    """A copy of the base in standard ONNX, without composites."""
    model = base.clone()
    lower_nodes(model.graph, GraphBuilder(free_names(model.graph)).op, LOWERED)
    return tidy(model)


def _only_what_is_read(model: ir.Model, options: ConvertOptions, seeds: Seeds, unpadded: bool) -> Seeds:
    """Leave out of a forward graph the rows that the loss does not read, and with `unpadded` those of padding.

    Returns the seeds, whose values may have been replaced.
    """
    model.graph.outputs[:] = [*seeds, *seeds.values()]
    if options.unpad:
        slice_early(model)
    if options.task != "feature-extraction" and options.pooling in ("mean", "cls"):
        gather_rows(model, kept=unpadded)
    gather_heads(model)
    values = list(model.graph.outputs)
    model.graph.outputs.clear()
    return dict(zip(values[: len(seeds)], values[len(seeds) :], strict=True))


@dataclass(frozen=True)
class _Backward:
    """A graph with loss and backward pass: its outputs but for gradients, its further inputs."""

    adapted: Adapted
    outputs: dict[str, ir.Value]
    extra: tuple[TensorSpec, ...]
    walked: Gradients


def _backward(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    loss: Loss,
    method: AdapterMethod,
    dropout: bool,
    unpadded: bool,
    joined: bool,
) -> _Backward:
    """Forward, loss and backward; with `joined`, what the backward pass can share is one node."""
    adapted = adapt(base, points, options, method, dropout)
    graph = adapted.model.graph
    known = {str(v.name) for v in (*base.graph.inputs, *adapted.adapter_inputs)}
    built = loss.build(adapted.op, adapted.task)
    extra = loss_inputs(graph, known)
    names = [str(v.name) for v in graph.inputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConversionError(f"the source has an input {', '.join(twice)}, as the loss {loss.name} has: rename it")
    seeds = built if isinstance(built, dict) else {built: _one(adapted.op)}
    seeds = _only_what_is_read(adapted.model, options, seeds, unpadded)
    if joined:
        share_inputs(graph)
        keep_slopes(graph)
    adapted = replace(adapted, op=GraphBuilder(free_names(graph)).op)
    outputs = {} if isinstance(built, dict) else {"loss": next(iter(seeds))}
    walked = walk_back(adapted.op, list(graph), seeds, adapted.adapter_inputs)
    return _Backward(adapted, outputs, extra, walked)


def training_graph(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    loss: Loss,
    dropout: bool,
    unpadded: bool,
    file: str,
    weighed: Sizes | None = None,
    method: AdapterMethod = LORA,
) -> Trained:
    """Forward, loss and backward in one graph; outputs the loss and `grad.X` for every adapter input X.

    With `unpadded` no padding is computed. Points that an operator without a gradient rule cuts off from the loss are
    returned as lost. The graph comes in a form that holds less, too, if that pays at the sizes `weighed`.
    """
    made = _backward(base, points, options, loss, method, dropout, unpadded, joined=True)
    if made.walked.blocked:  # what is lost is told of each adapter by itself
        made = _backward(base, points, options, loss, method, dropout, unpadded, joined=False)
    adapted, outputs, walked = made.adapted, made.outputs, made.walked
    op, graph = adapted.op, adapted.model.graph
    lost = lost_points(base.graph, graph, points, adapted.adapter_inputs, walked)
    gradients = {f"grad.{x.name}": walked.of[x] for x in adapted.adapter_inputs if x in walked.of}
    if not gradients:
        return Trained(adapted.model, None, lost)
    _set_outputs(adapted, outputs | gradients)
    lower_nodes(graph, op, LOWERED | {DECODED_PRODUCT.op_type: DECODED_PRODUCT})
    add_in_product(adapted.model, of_matrices)
    scale_products(adapted.model)
    again = rematerialize(adapted.model, weighed) if weighed is not None else None
    tidy(adapted.model)
    reached = tuple(p.id for p in points if all(f"grad.{x.name}" in gradients for x in method.inputs(p)))
    record = TrainingGraph(file, loss.name, dropout, reached, made.extra, tuple(outputs))
    if again is None:
        return Trained(adapted.model, record, lost)
    model, work = again
    recomputed = Recomputed(f"{file.removesuffix('.onnx')}-recomputed.onnx", round(work, 3))
    return Trained(adapted.model, replace(record, recomputed=recomputed), lost, tidy(model))


def _one(op: OpBuilder) -> ir.Value:
    """The loss's own cotangent."""
    one = op.Constant(value_float=1.0)
    one.name = f"{SEED}loss"
    return one


def training_graphs(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    sizes: Sizes | None,
    unpadded: bool,
    ending: str = "",
    weighed: Sizes | None = None,
    progress: Callable[[str], None] = lambda _: None,
    method: AdapterMethod = LORA,
) -> tuple[dict[str, ir.Model], tuple[TrainingGraph, ...], tuple[LostPoint, ...]]:
    """The graphs of every loss of the task, with dropout and without, by file; their records; the points lost to any.

    `sizes`, some of the inputs', show whether masks can be drawn; None leaves the graphs with dropout out. `weighed`
    are those at which it must pay to recompute; None leaves these graphs out.
    """
    graphs: dict[str, ir.Model] = {}
    records: list[TrainingGraph] = []
    lost: dict[str, LostPoint] = {}
    for loss in LOSSES[options.task]:
        for dropout in (False, True) if sizes is not None else (False,):
            progress(f"backward pass for {loss.name}{' with dropout' if dropout else ''}")
            file = f"train-{loss.name}{'-dropout' if dropout else ''}{ending}.onnx"
            made = training_graph(base, points, options, loss, dropout, unpadded, file, weighed, method)
            lost |= {point.id: point for point in made.lost}
            if made.record is not None and (sizes is None or _masks_follow(made.record, sizes)):
                graphs[file] = made.model
                records.append(made.record)
                if made.record.recomputed is not None and made.again is not None:
                    graphs[made.record.recomputed.file] = made.again
    return graphs, tuple(records), tuple(lost[point.id] for point in points if point.id in lost)


def graphs_of_method(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    method: AdapterMethod,
    unpadded: bool,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, ir.Model], GraphSet]:
    """The graphs for adapters of another method than LoRA, by file, and their record; without dropout."""
    file, ending = f"forward-{method.graphs}.onnx", f"-{method.graphs}"
    forward = forward_graph(base, points, options, method).model
    trained, training, _ = training_graphs(base, points, options, None, unpadded, ending, None, progress, method)
    inputs = tuple(x for point in points for x in method.inputs(point))
    wanted = {point.id for point in points}
    norms = method.norms([site for site in find_sites(base) if site.point.id in wanted], base.opset_imports[""])
    graphs, norms_file = {file: forward, **trained}, None if norms is None else f"norms{ending}.onnx"
    if norms is not None and norms_file is not None:
        graphs[norms_file] = norms
    return graphs, GraphSet(file, training, inputs, norms_file)


def graphs_after_prefix(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    count: int,
    sizes: Sizes,
    unpadded: bool,
) -> tuple[dict[str, ir.Model], Prefix]:
    """The prefix before the last `count` layers, and the inference and training graphs that go on from it."""
    chosen = last_blocks(points, count)
    cut = cut_before(base, chosen, sizes)
    suffix = prune(cut.suffix, options)
    return _graphs_after(f"last-{count}", cut.prefix, suffix, chosen, options, sizes, unpadded)


def graphs_after_skips(
    skips: Skips, points: Sequence[InsertionPoint], options: ConvertOptions
) -> tuple[dict[str, ir.Model], Prefix]:
    """What is kept of each layer's input, and the graphs that go on from it; without dropout, which is not linear."""
    pooling = "pooler" if skips.pooled else options.pooling
    return _graphs_after(
        "skip", skips.prefix, skips.suffix, points, replace(options, pooling=pooling, output=None), None, False
    )


def _graphs_after(
    name: str,
    prefix: ir.Model,
    suffix: ir.Model,
    chosen: Sequence[InsertionPoint],
    options: ConvertOptions,
    sizes: Sizes | None,
    unpadded: bool,
) -> tuple[dict[str, ir.Model], Prefix]:
    """The graphs of a base in two; `sizes` None leaves those with dropout out, `unpadded` padding."""
    kept = specs(prefix.graph.outputs)
    lower_nodes(prefix.graph, GraphBuilder(free_names(prefix.graph)).op, LOWERED)
    file, forward = f"prefix-{name}.onnx", f"forward-{name}.onnx"
    graphs = {file: tidy(prefix), forward: forward_graph(suffix, chosen, options).model}
    trained, training, _ = training_graphs(suffix, chosen, options, sizes, unpadded, f"-{name}")
    return graphs | trained, Prefix(name, file, kept, tuple(p.id for p in chosen), forward, training)


def _masks_follow(record: TrainingGraph, sizes: Sizes) -> bool:
    """Whether the sizes of all dropout masks follow from those of the inputs, so that a trainer can draw them."""
    try:
        return all(evaluate_dimension(d, sizes) >= 0 for s in record.inputs if s.dtype == "uint8" for d in s.shape)
    except ConfigError:
        return False


def _set_outputs(adapted: Adapted, outputs: dict[str, ir.Value]) -> None:
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
