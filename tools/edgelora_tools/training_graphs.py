"""Training graphs: forward, loss and backward in one, of every loss of the task, with dropout and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConfigError, ConversionError
from edgelora.manifest import Halves, InsertionPoint, LostPoint, Recomputed, TensorSpec, TrainingGraph
from edgelora_tools.backward import Gradients, walk_back
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites.block_product import DECODED_PRODUCT
from edgelora_tools.composites.rms_kernel import RMS_KERNEL
from edgelora_tools.composites.rotary_kernel import ROTARY_KERNEL
from edgelora_tools.composites.token_loss import INTEGER_TOKEN_LOSS
from edgelora_tools.graphs import LOWERED, Adapted, adapt, set_outputs
from edgelora_tools.losses import COTANGENT, LOSSES, Loss, loss_inputs
from edgelora_tools.lost_points import lost_points
from edgelora_tools.lowering import lower_nodes
from edgelora_tools.measure_shapes import Sizes
from edgelora_tools.methods import LORA, AdapterMethod
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.add_in_product import add_in_product, biases
from edgelora_tools.passes.causal_blocks import causal_blocks
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.gelu_slopes import keep_slopes
from edgelora_tools.passes.halve import halve
from edgelora_tools.passes.heads import gather_heads
from edgelora_tools.passes.image_rows import images_in_rows
from edgelora_tools.passes.point_kernels import join_point_kernels
from edgelora_tools.passes.rematerialize import COTANGENT as SEED
from edgelora_tools.passes.rematerialize import rematerialize
from edgelora_tools.passes.rows import gather_rows
from edgelora_tools.passes.scales import scale_products
from edgelora_tools.passes.share_inputs import share_inputs
from edgelora_tools.passes.slice_early import slice_early
from edgelora_tools.passes.spare_expand import spare_expand
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.passes.turned_twice import turn_once


@dataclass(frozen=True)
class Trained:
    """A training graph: its forms by file, the plain one first, its record, and the points that no loss reaches.

    There is no record, and nothing to train with the graph, if no gradient is left.
    """

    forms: dict[str, ir.Model]
    record: TrainingGraph | None
    lost: tuple[LostPoint, ...]

    @property
    def model(self) -> ir.Model:
        """The plain graph."""
        return next(iter(self.forms.values()))


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
                graphs |= made.forms
                records.append(made.record)
    return graphs, tuple(records), tuple(lost[point.id] for point in points if point.id in lost)


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
    returned as lost. The graph comes in a form that holds less, too, if that pays at the sizes `weighed`; and in two
    halves where a task has no loss but the host's.
    """
    made = _backward(base, points, options, loss, method, dropout, unpadded, joined=True)
    if made.walked.blocked:  # what is lost is told of each adapter by itself
        made = _backward(base, points, options, loss, method, dropout, unpadded, joined=False)
    adapted, outputs, walked = made.adapted, made.outputs, made.walked
    op, graph = adapted.op, adapted.model.graph
    lost = lost_points(base.graph, graph, points, adapted.adapter_inputs, walked)
    gradients = {f"grad.{x.name}": walked.of[x] for x in adapted.adapter_inputs if x in walked.of}
    if not gradients:
        return Trained({file: adapted.model}, None, lost)
    between = made.read if LOSSES[options.task] == (COTANGENT,) and not dropout else {}
    set_outputs(adapted, outputs | between | gradients)
    kernels = DECODED_PRODUCT, ROTARY_KERNEL, RMS_KERNEL, INTEGER_TOKEN_LOSS
    lower_nodes(graph, op, LOWERED | {one.op_type: one for one in kernels})
    add_in_product(adapted.model, biases)
    scale_products(adapted.model)
    spare_expand(graph)
    turn_once(graph, op)
    halves = halve(adapted.model, tuple(between)) if between else None
    graph.outputs[:] = [y for y in graph.outputs if y.name not in between]
    again = rematerialize(adapted.model, weighed) if weighed is not None else None
    tidy(adapted.model)
    reached = tuple(p.id for p in points if all(f"grad.{x.name}" in gradients for x in method.inputs(p)))
    record, forms = TrainingGraph(file, loss.name, dropout, reached, made.extra, tuple(outputs)), {file: adapted.model}
    stem = file.removesuffix(".onnx")
    if again is not None:
        model, work = again
        record = replace(record, recomputed=Recomputed(f"{stem}-recomputed.onnx", round(work, 3)))
        forms[f"{stem}-recomputed.onnx"] = tidy(model)
    if halves is not None:
        first, second, kept = halves
        record = replace(record, halves=Halves(f"{stem}-forward.onnx", f"{stem}-backward.onnx", kept))
        forms |= {f"{stem}-forward.onnx": first, f"{stem}-backward.onnx": second}
    return Trained(forms, record, lost)


@dataclass(frozen=True)
class _Backward:
    """A graph with loss and backward pass: its outputs but for gradients, its further inputs.

    `read` are the outputs of inference, by name, from which a loss on the host makes their cotangents; none of another.
    """

    adapted: Adapted
    outputs: dict[str, ir.Value]
    read: dict[str, ir.Value]
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
    kept = only_what_is_read(adapted.model, options, [*seeds, *seeds.values()], unpadded, joined)
    seeds = dict(zip(kept[: len(seeds)], kept[len(seeds) :], strict=True))
    adapted = replace(adapted, op=GraphBuilder(free_names(graph)).op)
    outputs = {} if isinstance(built, dict) else {"loss": next(iter(seeds))}
    fed = {str(c.name).removeprefix(SEED): y for y, c in seeds.items() if c.is_graph_input()}
    read = fed if fed.keys() == adapted.task.outputs.keys() else {}
    walked = walk_back(adapted.op, list(graph), seeds, adapted.adapter_inputs)
    return _Backward(adapted, outputs, read, extra, walked)


def only_what_is_read(
    model: ir.Model, options: ConvertOptions, wanted: Sequence[ir.Value], unpadded: bool, joined: bool
) -> list[ir.Value]:
    """Leave out of a forward graph the rows that the `wanted` do not read, and with `unpadded` those of padding.

    With `joined`, what the backward pass can share is one node. Returns the wanted, which may have been replaced.
    """
    model.graph.outputs[:] = wanted
    if options.unpad:
        slice_early(model)
    if options.head_task != "feature-extraction" and options.pooling in ("mean", "cls"):
        gather_rows(model, kept=unpadded)
    gather_heads(model)
    if options.unpad:
        causal_blocks(model, length=options.length)
    if joined:
        images_in_rows(model.graph)
        share_inputs(model.graph)
        keep_slopes(model.graph)
        join_point_kernels(model.graph)
    values = list(model.graph.outputs)
    model.graph.outputs.clear()
    return values


def _one(op: OpBuilder) -> ir.Value:
    """The loss's own cotangent."""
    one = op.Constant(value_float=1.0)
    one.name = f"{SEED}loss"
    return one


def _masks_follow(record: TrainingGraph, sizes: Sizes) -> bool:
    """Whether the sizes of all dropout masks follow from those of the inputs, so that a trainer can draw them."""
    try:
        return all(evaluate_dimension(d, sizes) >= 0 for s in record.inputs if s.dtype == "uint8" for d in s.shape)
    except ConfigError:
        return False
