"""The pipeline: source -> normal form -> insertion points -> method -> loss -> backward -> passes -> bundle."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import GraphBuilder, OpBuilder

from edgelora.config import LoraConfig
from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConfigError, ConversionError
from edgelora.manifest import InsertionPoint, LostPoint, Manifest, Prefix, TensorSpec, TrainingGraph
from edgelora.targets import select_points
from edgelora_tools.backward import values_read, walk_back
from edgelora_tools.bundle_writer import base_digest, check_destination, frozen_weights, write_bundle
from edgelora_tools.calibration import Plan, Quantized, calibrate, calibration_sample, facts, files
from edgelora_tools.composites import COMPOSITES, recognise_composites
from edgelora_tools.composites.quantized_product import QUANTIZED_PRODUCT
from edgelora_tools.frozen import rounds_activations
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.heads import TaskOutput, attach_task
from edgelora_tools.insertion import Site, find_sites
from edgelora_tools.losses import COTANGENT, LOSSES, Loss, loss_inputs
from edgelora_tools.lost_points import lost_points
from edgelora_tools.lowering import Lowered, lower_nodes
from edgelora_tools.measure_shapes import Sizes, batch_name, measure_shapes
from edgelora_tools.memory_table import memory_table
from edgelora_tools.methods import LORA, AdapterMethod
from edgelora_tools.methods.lora import OP_TYPE
from edgelora_tools.mixed import stack_adapters
from edgelora_tools.normalize import computes_in_half, normalize, onnx_errors
from edgelora_tools.passes.accumulate import accumulate_products
from edgelora_tools.passes.add_in_product import add_in_product
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.heads import LOWERED as HEADS
from edgelora_tools.passes.heads import gather_heads
from edgelora_tools.passes.padding import ignores_padding
from edgelora_tools.passes.prefix import cut_before, last_blocks
from edgelora_tools.passes.quantize import Rung, quantize
from edgelora_tools.passes.rows import LOWERED as ROWS
from edgelora_tools.passes.rows import gather_rows
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.runner import sample_inputs
from edgelora_tools.skips import Skips, with_skips
from edgelora_tools.sources.base import Source
from edgelora_tools.sources.fixed import fixed

# PEFT's defaults for the encoders and decoders that it knows (TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING).
USUAL_TARGETS = ("query", "value", "q_lin", "v_lin", "q_proj", "v_proj", "c_attn", "query_key_value", "q", "v")

LOWERED: dict[str, Lowered] = {
    OP_TYPE: LORA,
    **{one.op_type: one for one in (*COMPOSITES, QUANTIZED_PRODUCT)},
    **ROWS,
    **HEADS,
}

MIXED_FILE = "mixed.onnx"

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class ConvertOptions:
    """What a person chooses at conversion.

    `target_modules` and `exclude_modules` follow PEFT; they decide which points the bundle's graphs can
    adapt. `output` names the source output that the task reads, where several fit. For each number in
    `train_last` there are also graphs for adapters in that many last layers alone, after a frozen prefix.
    `quantize` is the precision of the frozen weights (`int8`), calibrated on the samples of the file
    `calibration`, or on random inputs. `placement` "skip" puts adapters from every layer's input to the last
    hidden state, instead of into the modules (skips.py). `unpad` leaves padding out of the training graphs'
    row-wise operators where that changes no result.
    """

    task: str = "sequence-classification"
    pooling: str = "mean"
    output: str | None = None
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    name: str | None = None
    max_length: int | None = None
    unpad: bool = True
    overwrite: bool = False
    train_last: tuple[int, ...] = ()
    quantize: str | None = None
    calibration: Path | None = None
    placement: str = "modules"


@dataclass(frozen=True)
class Adapted:
    """A graph with adapters in it: the model, its builder, the task's outputs, the adapter's inputs."""

    model: ir.Model
    op: OpBuilder
    task: TaskOutput
    adapter_inputs: tuple[ir.Value, ...]


def convert(
    source: Source, destination: Path, options: ConvertOptions, progress: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Write the bundle of `source` at `destination` and return its manifest.

    Raises:
        ConversionError: what about the source cannot be converted, by name.
    """
    check_destination(destination, options.overwrite)
    if options.placement == "skip" and (options.train_last or options.quantize is not None):
        raise ConversionError("placement skip runs the base once a sample: leave train_last and quantize out")
    progress("normal form")
    half = computes_in_half(source.model)
    model = normalize(source.model.clone())
    precision = "int8" if rounds_activations(model) else "float16" if half else "float32"
    sizes = measure_shapes(model)
    recognise_composites(model)
    base = prune(model, options)
    sites = find_sites(base)
    if not sites:
        raise ConversionError("the model has no MatMul, Gemm or Conv with frozen weights: there is nothing to adapt")
    skips = None
    if options.placement == "skip":
        skips = with_skips(base, sites, sizes[0], options.task, options.pooling)
        base, sites = skips.base, find_sites(skips.base)
    points = tuple(site.point for site in sites)
    chosen = select_points(points, targets(points, options))
    progress(f"{len(chosen)} of {len(points)} insertion points")
    found = None
    if options.quantize is not None:
        found = quantize_base(source, model, base, chosen, sizes, options, progress)
        model, base, precision = found.model, found.base, options.quantize
    forward = forward_graph(base, chosen, options)
    graphs: dict[str, ir.Model] = {"forward.onnx": forward.model}
    mixed = mixed_graph(base, chosen, options, batch_name(model))
    if mixed is not None:
        graphs[MIXED_FILE] = mixed
    training: list[TrainingGraph] = []
    lost: dict[str, LostPoint] = {}
    unpadded = options.unpad and ignores_padding(_standard(base), sizes[0])
    for loss in LOSSES[options.task]:
        for dropout in (False, True):
            progress(f"backward pass for {loss.name}{' with dropout' if dropout else ''}")
            file = f"train-{loss.name}{'-dropout' if dropout else ''}.onnx"
            trained, record, cut_off = training_graph(
                row_wise(base, options, dropout or not unpadded), chosen, options, loss, dropout, file
            )
            lost |= {point.id: point for point in cut_off}
            if record is not None and _masks_follow(record, sizes[0]):
                graphs[file], training = trained, [*training, record]
    prefixes: list[Prefix] = []
    for count in dict.fromkeys(options.train_last):
        progress(f"graphs for the last {count} layers")
        made, prefix = graphs_after_prefix(base, chosen, options, count, sizes[0], unpadded)
        graphs, prefixes = graphs | made, [*prefixes, prefix]
    if skips is not None:
        progress("graphs for kept layer inputs")
        made, prefix = graphs_after_skips(skips, chosen, options)
        graphs, prefixes = graphs | made, [*prefixes, prefix]
    progress("parity samples from the source")
    samples = parity_samples(source, model, base, sizes)
    manifest = Manifest(
        name=options.name or source.name,
        task=options.task,
        base_digest=base_digest(model),
        base_parameters=sum(tensor.size for tensor in frozen_weights(model)),
        inputs=_specs(base.graph.inputs),
        outputs=tuple(
            TensorSpec(name, "float32" if v.dtype is None else v.dtype.numpy().name, _shape(v))
            for name, v in forward.task.outputs.items()
        ),
        points=chosen,
        target_modules=_patterns(targets(points, options)),
        forward="forward.onnx",
        training=tuple(training),
        head=forward.task.head,
        preprocessing=source.preprocessing(options.max_length),
        source={
            "kind": source.kind,
            "pooling": options.pooling,
            "outputs": [str(v.name) for v in base.graph.outputs],
            "precision": precision,
            **({} if found is None else found.facts),
            **source.facts,
        },
        files={},
        lost=tuple(lost[point.id] for point in chosen if point.id in lost),
        prefixes=tuple(prefixes),
        mixed=None if mixed is None else MIXED_FILE,
    )
    progress("writing")
    files = source.files if found is None else {**source.files, **found.files}
    planned = {manifest.forward, *(graph.file for graph in manifest.training)}
    return write_bundle(
        destination,
        manifest,
        graphs,
        samples,
        files,
        options.overwrite,
        lambda path, model: memory_table(path, model, sizes) if path.name in planned else None,
    )


def quantize_base(
    source: Source,
    model: ir.Model,
    base: ir.Model,
    chosen: Sequence[InsertionPoint],
    sizes: Sequence[Sizes],
    options: ConvertOptions,
    progress: Callable[[str], None],
) -> Quantized:
    """The model with integer products where the gradients of the chosen points allow it; see calibration.py."""

    def planned(plan: Plan) -> ir.Model:
        return prune(quantize(model.clone(), plan), options)

    def probe_graph(plan: Plan) -> ir.Model:
        pruned = base if all(c.rung is Rung.REAL for c in plan.values()) else planned(plan)
        return training_graph(pruned, chosen, options, COTANGENT, False, "probe.onnx")[0]

    sample = calibration_sample(source, model, base, sizes[0], options)
    found = calibrate(base, chosen, sample, probe_graph, LOWERED, progress)
    sites = find_sites(base)
    return Quantized(quantize(model.clone(), found.plan), planned(found.plan), facts(found, sites), files(found))


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


def targets(points: Sequence[InsertionPoint], options: ConvertOptions) -> LoraConfig:
    """Which points the bundle can adapt: those asked for, else attention's usual ones, else all.

    A convolution in groups must be asked for: its B costs as much as the frozen kernel.
    """
    usual = tuple(t for t in USUAL_TARGETS if any(p.id == t or p.id.endswith(f".{t}") for p in points))
    dense = tuple(p.id for p in points if p.groups == 1) if any(p.kernel for p in points) else "all-linear"
    return LoraConfig(target_modules=options.target_modules or usual or dense, exclude_modules=options.exclude_modules)


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
    """y = base(x) becomes y' = y + delta(x ∘ mask); everything that read y reads y'."""
    tensors = [op.builder.input(s.name, ir.DataType.FLOAT, list(s.shape)) for s in method.tensors(site.point)]
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
        adapted = op.Add(y, method.delta(op, use.product, seen, tensors))
        adapted.shape, adapted.type = y.shape, y.type
        for node, position in readers:
            node.replace_input_with(position, adapted)
        if is_output:
            outputs = op.builder.graph.outputs
            name, y.name = y.name, f"{y.name}.base"
            adapted.name = name
            outputs[:] = [adapted if v is y else v for v in outputs]
    return tensors


def forward_graph(base: ir.Model, points: Sequence[InsertionPoint], options: ConvertOptions) -> Adapted:
    """The inference graph: adapter tensors are inputs of symbolic rank."""
    adapted = adapt(base, points, options, LORA, dropout=False)
    _set_outputs(adapted, adapted.task.outputs)
    add_in_product(adapted.model, adapted.op)
    lower_nodes(adapted.model.graph, adapted.op, LOWERED)
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


def _standard(base: ir.Model) -> ir.Model:
    """A copy of the base in standard ONNX, without composites."""
    model = base.clone()
    lower_nodes(model.graph, GraphBuilder(free_names(model.graph)).op, LOWERED)
    return tidy(model)


def row_wise(base: ir.Model, options: ConvertOptions, padded: bool) -> ir.Model:
    """A copy of the base whose row-wise regions are matrices of rows, without the padding unless something sees it."""
    model = base.clone()
    if options.task != "feature-extraction" and options.pooling in ("mean", "cls"):
        by_token = options.task == "token-classification"  # a loss may weigh any position, masked or not
        gather_rows(model, kept=not padded and not by_token, first_too=options.pooling == "cls")
        gather_heads(model)
    return model


def training_graph(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    loss: Loss,
    dropout: bool,
    file: str,
) -> tuple[ir.Model, TrainingGraph | None, tuple[LostPoint, ...]]:
    """Forward, loss and backward in one graph; outputs the loss and `grad.X` for every adapter input X.

    Points that an operator without a gradient rule cuts off from the loss are returned as lost. There is
    no record, and nothing to train with the graph, if no gradient is left.
    """
    adapted = adapt(base, points, options, LORA, dropout)
    op, graph = adapted.op, adapted.model.graph
    known = {str(v.name) for v in (*base.graph.inputs, *adapted.adapter_inputs)}
    built = loss.build(op, adapted.task)
    extra = loss_inputs(graph, known)
    names = [str(v.name) for v in graph.inputs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConversionError(f"the source has an input {', '.join(twice)}, as the loss {loss.name} has: rename it")
    outputs: dict[str, ir.Value] = {} if isinstance(built, dict) else {"loss": built}
    seeds = built if isinstance(built, dict) else {built: op.Constant(value_float=1.0)}
    walked = walk_back(op, list(graph), seeds, adapted.adapter_inputs)
    lost = lost_points(base.graph, graph, points, adapted.adapter_inputs, walked)
    gradients = {f"grad.{x.name}": walked.of[x] for x in adapted.adapter_inputs if x in walked.of}
    if not gradients:
        return adapted.model, None, lost
    _set_outputs(adapted, outputs | gradients)
    lower_nodes(graph, op, LOWERED)
    accumulate_products(adapted.model)
    tidy(adapted.model)
    reached = tuple(p.id for p in points if f"grad.{p.input_b}" in gradients)
    return adapted.model, TrainingGraph(file, loss.name, dropout, reached, extra, tuple(outputs)), lost


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
    kept = _specs(prefix.graph.outputs)
    lower_nodes(prefix.graph, GraphBuilder(free_names(prefix.graph)).op, LOWERED)
    file, forward = f"prefix-{name}.onnx", f"forward-{name}.onnx"
    graphs = {file: tidy(prefix), forward: forward_graph(suffix, chosen, options).model}
    training: list[TrainingGraph] = []
    for loss in LOSSES[options.task]:
        for dropout in (False, True) if sizes is not None else (False,):
            trains = f"train-{loss.name}{'-dropout' if dropout else ''}-{name}.onnx"
            rest = row_wise(suffix, options, dropout or not unpadded)
            trained, record, _ = training_graph(rest, chosen, options, loss, dropout, trains)
            if record is not None and (sizes is None or _masks_follow(record, sizes)):
                graphs[trains], training = trained, [*training, record]
    return graphs, Prefix(name, file, kept, tuple(p.id for p in chosen), forward, tuple(training))


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


def parity_samples(
    source: Source, model: ir.Model, base: ir.Model, sizes: Sequence[Sizes]
) -> list[tuple[Feeds, Feeds]]:
    """Random inputs and what the source returns for them: `check` compares the bundle with these anywhere.

    The sizes are those at which the shapes were measured, and the first with a batch of one. The source
    is given all of its inputs; the bundle's alone are kept.

    Raises:
        ConversionError: the source does not run.
    """
    batch = batch_name(model)
    alone = sizes[0] | ({batch: 1} if batch is not None else {})
    taken = {str(v.name) for v in base.graph.inputs}
    samples = []
    for seed, tried in enumerate((alone, *sizes)):
        feeds = sample_inputs(model, tried, np.random.default_rng(seed))
        with onnx_errors(f"the source does not run at the sizes {tried}"):
            outputs = source.run(feeds)
        wanted = {str(v.name): outputs[str(v.name)] for v in base.graph.outputs}
        samples.append(({name: x for name, x in feeds.items() if name in taken}, wanted))
    return samples


def source_outputs(source: Source, manifest: Manifest, feeds: Feeds) -> Feeds:
    """What the source returns for these inputs, of the outputs that the bundle was made from.

    Raises:
        ConversionError: the source does not run on them, or is not the one of the bundle.
    """
    with onnx_errors("the source does not run on these inputs"):
        outputs = fixed(source, manifest.source.get("fixed", {})).run(feeds)
    missing = [name for name in manifest.source["outputs"] if name not in outputs]
    if missing:
        raise ConversionError(f"the source has no output {', '.join(missing)}: the bundle was made from another one")
    return {name: outputs[name] for name in manifest.source["outputs"]}


def _patterns(config: LoraConfig) -> tuple[str, ...]:
    chosen = config.target_modules
    assert chosen is not None
    return (chosen,) if isinstance(chosen, str) else tuple(chosen)


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    return tuple("?" if d is None else d for d in dims(value))


def _specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(v.name), v.dtype.numpy().name, _shape(v)) for v in values if v.dtype is not None)
