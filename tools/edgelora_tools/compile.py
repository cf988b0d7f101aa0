"""The pipeline: source -> normal form -> insertion points -> method -> loss -> backward -> passes -> bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgelora.config import LoraConfig
from edgelora.errors import ConfigError, ConversionError
from edgelora.manifest import RECURRENT, Budget, GraphSet, InsertionPoint, Manifest, MemoryTable, Prefix, TensorSpec
from edgelora.memory_forecast import forecast
from edgelora.memory_plan import MemoryPlan
from edgelora.parity import WRITTEN, differences
from edgelora.targets import ALL_LINEAR, select_points
from edgelora_tools.base_values import values_graph
from edgelora_tools.bundle_writer import base_digest, check_destination, frozen_weights, write_bundle
from edgelora_tools.calibration import Plan, Quantized, calibrate, calibration_sample, facts, files, language_sample
from edgelora_tools.composites import recognise_composites
from edgelora_tools.detectors import detector_settings
from edgelora_tools.frozen import rounds_activations
from edgelora_tools.graph_sets import graphs_after_prefix, graphs_after_skips, graphs_of_method
from edgelora_tools.graphs import LOWERED, forward_graph, mixed_graph, prune, shape_names, specs, standard
from edgelora_tools.heads import HEAD_NAME, reads_shares
from edgelora_tools.insertion import Site, find_sites
from edgelora_tools.language import cached_graph, check_language, language_graphs, language_set
from edgelora_tools.losses import COTANGENT, LOSSES
from edgelora_tools.measure_shapes import Sizes, batch_name, measure_shapes
from edgelora_tools.memory_table import memory_table, table_of_texts
from edgelora_tools.methods import LORA, METHODS, AdapterMethod
from edgelora_tools.normalize import computes_in_half, normalize, onnx_errors
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.independent_rows import rows_are_independent
from edgelora_tools.passes.padding import ignores_padding
from edgelora_tools.passes.quantize import Rung, quantize
from edgelora_tools.preprocessing import at_size_of_pictures, preprocessing_of
from edgelora_tools.runner import sample_inputs
from edgelora_tools.skips import with_skips
from edgelora_tools.sources import GENERATION
from edgelora_tools.sources.base import Source
from edgelora_tools.sources.fixed import fixed
from edgelora_tools.sources.inside import EVERY
from edgelora_tools.training_graphs import training_graph, training_graphs
from edgelora_tools.vocabulary import head_weights, vocabulary_head
from edgelora_tools.written_text import written_text

# PEFT's defaults for the encoders and decoders that it knows (TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING).
USUAL_TARGETS = (
    "query",
    "value",
    "q_lin",
    "v_lin",
    "q_proj",
    "v_proj",
    "c_attn",
    "query_key_value",
    "qkv_proj",
    "q",
    "v",
)

AS_IT_IS = "feature-extraction"  # the task that returns the source's tensors, maps too as they lie there
MIXED_FILE, VALUES_FILE = "mixed.onnx", "values.onnx"

Feeds = dict[str, np.ndarray]


def convert(
    source: Source,
    destination: Path,
    options: ConvertOptions,
    progress: Callable[[str], None] = lambda _: None,
    planned: Callable[[MemoryPlan], None] = lambda _: None,
) -> Manifest:
    """Write the bundle of `source` at `destination` and return its manifest.

    If there is a budget of memory, `planned` is told how training would keep to it.

    Raises:
        ConversionError: what about the source cannot be converted, by name; or what training within the budget lacks.
    """
    check_place(destination, options.output, options.overwrite)
    check_language(source, options)
    if options.max_length is not None and options.max_length < 1:
        raise ConversionError(f"a text has at least one token: max_length {options.max_length} is none")
    if options.target_modules == ():
        raise ConversionError(
            "a bundle has insertion points, and target_modules names none: leave it out (`edgelora train "
            "--target-modules none` trains a head alone)"
        )
    if options.placement == "skip" and (options.train_last or options.quantize is not None):
        raise ConversionError("placement skip runs the base once a sample: leave train_last and quantize out")
    methods = chosen_methods(options)
    if min(options.batch_size, options.length) < 1:
        raise ConversionError("the batch size and the length that memory is weighed for must be at least 1")
    source = at_size_of_pictures(source.reading(options.output, options.task != AS_IT_IS), options)
    progress("normal form")
    half = computes_in_half(source.model)
    model = normalize(source.model.clone())
    precision = "int8" if rounds_activations(model) else "float16" if half else "float32"
    sizes = measure_shapes(model)
    recognise_composites(model, long_rows=options.task == GENERATION)
    base = prune(model, options)
    if options.task in HEAD_NAME and reads_shares(base.graph):
        progress("its head reads a softmax, and learns better from what is before that: --source-output '?' lists it")
    sites = find_sites(base)
    if not sites:
        raise ConversionError("the model has no MatMul, Gemm or Conv with frozen weights: there is nothing to adapt")
    preprocessing, features = preprocessing_of(source, specs(base.graph.inputs), options)
    detector = detector_settings(base.graph, options)
    skips = None
    if options.placement == "skip":
        skips = with_skips(base, sites, sizes[0], options.task, options.pooling)
        base, sites = skips.base, find_sites(skips.base)
    points = offered(base, sites, options)
    chosen = select_points(points, targets(points, options))
    if methods and (recurrent := [point.id for point in chosen if point.op in RECURRENT]):
        raise ConversionError(f"recurrent layers ({', '.join(recurrent)}) take LoRA adapters alone: leave methods out")
    progress(f"{len(chosen)} of {len(points)} insertion points")
    batch, found = batch_name(model), None
    independent = batch is not None and rows_are_independent(standard(base), sizes[0], batch)
    if options.quantize is not None:
        found = quantize_base(source, model, base, chosen, sizes, options, progress)
        if found.plan:
            model, base, precision = found.model, found.base, options.quantize
        else:
            progress("nothing to quantize: there is no frozen MatMul or Gemm, and convolutions stay as they are")
            found = None
    forward = forward_graph(base, chosen, options)
    graphs: dict[str, ir.Model] = {"forward.onnx": forward.model}
    mixed = mixed_graph(base, chosen, options, batch) if independent and source.decoder is None else None
    if mixed is not None:
        graphs[MIXED_FILE] = mixed
    unpadded = options.unpad and ignores_padding(standard(base), sizes[0])
    length = min(options.length, preprocessing.get("max_length", options.length))
    weighed = weighing_sizes(model, sizes[1], options.batch_size, length)
    trained, training, lost = training_graphs(
        base, chosen, options, sizes[0], unpadded, weighed=weighed, progress=progress
    )
    graphs |= trained
    sets: dict[str, GraphSet] = {}
    for method in methods:
        progress(f"graphs for {method.graphs} adapters")
        made, sets[method.graphs] = graphs_of_method(base, chosen, options, method, unpadded, progress)
        graphs |= made
    places = [site for method in (LORA, *methods) for site in method.sites(base, chosen)]
    values = values_graph(places, base.opset_imports[""])
    if values is not None:
        graphs[VALUES_FILE] = values
    language = None
    if source.decoder is not None:
        progress("graphs with a cache")
        cached = cached_graph(source.decoder, None if found is None else found.plan)
        made, language = language_graphs(source.decoder, cached, base, chosen, options, unpadded)
        graphs |= made
        for method in methods:
            own = sets[method.graphs]
            made, sets[method.graphs] = language_set(cached, base, chosen, options, unpadded, method, own)
            graphs |= made
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
    samples, spread = parity_samples(source, model, base, sizes)
    manifest = Manifest(
        name=options.name or source.name,
        task=options.task,
        base_digest=base_digest(model, features.values()),
        base_parameters=sum(tensor.size for tensor in frozen_weights(model)),
        inputs=specs(base.graph.inputs),
        outputs=tuple(
            TensorSpec(name, "float32" if v.dtype is None else v.dtype.numpy().name, shape_names(v))
            for name, v in forward.task.outputs.items()
        ),
        points=chosen,
        target_modules=_patterns(targets(points, options)),
        forward="forward.onnx",
        training=training,
        head=forward.task.head,
        preprocessing=preprocessing,
        source={
            "kind": source.kind,
            "pooling": options.pooling,
            "outputs": [str(v.name) for v in base.graph.outputs],
            "precision": precision,
            **({} if found is None else found.facts),
            **source.facts,
            **({"spread": spread} if spread else {}),
        },
        files={},
        lost=lost,
        prefixes=tuple(prefixes),
        mixed=None if mixed is None else MIXED_FILE,
        methods=sets,
        budget=None if options.ram is None else Budget(options.ram, options.batch_size, length),
        values=None if values is None else VALUES_FILE,
        detector=detector,
        language=language,
    )
    recorded = {str(number): sample for number, sample in enumerate(samples)}
    if found is not None and source.decoder is not None:
        progress("what the source writes")
        text = written_text(source, source.decoder, np.random.default_rng(0))
        with onnx_errors("the source does not run on the text that it wrote"):
            recorded[WRITTEN] = (text, {"logits": source.run(text)["logits"]})
    progress("writing")
    files = {**source.files, **features, **({} if found is None else found.files)}
    weighty = {manifest.forward, *(file for graph in manifest.training for file in graph.files)}
    weighty |= set() if language is None else {language.score}
    for one in sets.values():
        weighty |= {one.forward, *(file for graph in one.training for file in graph.files)}
        weighty |= set() if one.score is None else {one.score}
    for one in prefixes:
        weighty |= {one.file, one.forward, *(file for graph in one.training for file in graph.files)}

    def measured(path: Path, graph: ir.Model) -> MemoryTable | None:
        progress(f"memory of {path.name}")
        return memory_table(path, graph, sizes) if language is None else table_of_texts(path, graph, *sizes[0])

    return write_bundle(
        destination,
        manifest,
        graphs,
        recorded,
        files,
        options.overwrite,
        lambda path, graph: measured(path, graph) if path.name in weighty else None,
        lambda path: planned(_forecast(path, manifest.budget)) if manifest.budget is not None else None,
    )


def _forecast(path: Path, budget: Budget) -> MemoryPlan:
    """How training would keep to the budget."""
    try:
        return forecast(path, budget.bytes, budget.batch_size, budget.length)
    except ConfigError as error:
        steps = f"training in steps of {budget.batch_size} samples, length {budget.length}"
        raise ConversionError(f"{steps}: {error}") from error


def check_place(destination: Path, output: str | None, overwrite: bool) -> None:
    """Raise ConversionError where a bundle may not be written; `EVERY` output lists tensors, and writes none."""
    if output != EVERY:
        check_destination(destination, overwrite)


def weighing_sizes(model: ir.Model, known: Sizes, batch_size: int, length: int) -> Sizes:
    """The sizes that memory is weighed at: the batch, and of all else as much as is asked for or `known` to run."""
    batch = batch_name(model)
    return {name: batch_size if name == batch else max(length, size) for name, size in known.items()}


def chosen_methods(options: ConvertOptions) -> tuple[AdapterMethod, ...]:
    """The methods that get graphs of their own.

    Raises:
        ConversionError: there is no such method, or it does not go with other options.
    """
    unknown = sorted(set(options.methods) - set(METHODS))
    if unknown:
        raise ConversionError(f"no adapter method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    chosen = tuple(METHODS[name] for name in dict.fromkeys(options.methods) if METHODS[name] is not LORA)
    if chosen and options.placement == "skip":
        raise ConversionError("placement skip is for LoRA adapters: leave methods out")
    return chosen


def quantize_base(
    source: Source,
    model: ir.Model,
    base: ir.Model,
    chosen: Sequence[InsertionPoint],
    sizes: Sequence[Sizes],
    options: ConvertOptions,
    progress: Callable[[str], None],
) -> Quantized:
    """The model with quantized products where the gradients of the chosen points allow it; see calibration.py.

    A base that is blind to padding stays so: what one scale for all of an input saves is less than what padding costs.
    A language model's head has codes by tokens, or stays real where an adapter stands at it (docs/decisions/0045).
    """

    def planned(plan: Plan) -> ir.Model:
        return prune(quantize(model.clone(), plan), options)

    generates = options.task == GENERATION
    loss = LOSSES[GENERATION][0] if generates else COTANGENT
    heads = head_weights(base) if generates else ()
    sites = [site for method in (LORA, *chosen_methods(options)) for site in method.sites(base, chosen)]
    adapted = {str(x.name) for site in sites for use in site.uses for x in use.product.inputs[1:] if x is not None}
    kept = tuple(name for name in heads if name in adapted)

    def probe_graph(plan: Plan) -> ir.Model:
        pruned = base if all(c.rung is Rung.REAL for c in plan.values()) else planned(plan)
        return training_graph(pruned, chosen, options, loss, False, False, "probe.onnx").model

    if source.decoder is None:
        sample = calibration_sample(source, model, base, sizes[0], options)
    else:
        sample = language_sample(source, source.decoder, model, sizes[0], options)
    apart = options.unpad and ignores_padding(standard(base), sizes[0])
    precision = options.quantize or "int8"
    found = calibrate(base, chosen, sample, probe_graph, LOWERED, precision, apart, progress, kept, heads, generates)
    made = quantize(model.clone(), found.plan)
    return Quantized(made, prune(made, options), found.plan, facts(found, find_sites(base)), files(found))


def offered(base: ir.Model, sites: Sequence[Site], options: ConvertOptions) -> tuple[InsertionPoint, ...]:
    """The points to choose from: what makes a language model's logits is adapted where it is named, as PEFT has it."""
    generates = options.task == "text-generation" and options.target_modules in (None, ALL_LINEAR)
    head = vocabulary_head(base.graph.outputs[0]) if generates else None
    makes = () if head is None else head.nodes
    return tuple(site.point for site in sites if not any(use.product in makes for use in site.uses))


def targets(points: Sequence[InsertionPoint], options: ConvertOptions) -> LoraConfig:
    """Which points the bundle can adapt: those asked for, else attention's usual ones, else all.

    A convolution in groups must be asked for, for its B costs as much as the frozen kernel, and so must a recurrent
    layer, which no other library adapts.
    """
    usual = tuple(t for t in USUAL_TARGETS if any(p.id == t or p.id.endswith(f".{t}") for p in points))
    dense = tuple(p.id for p in points if p.groups == 1 and p.op not in RECURRENT)
    others = dense if any(p.kernel for p in points) else "all-linear"
    return LoraConfig(target_modules=options.target_modules or usual or others, exclude_modules=options.exclude_modules)


def parity_samples(
    source: Source, model: ir.Model, base: ir.Model, sizes: Sequence[Sizes]
) -> tuple[list[tuple[Feeds, Feeds]], dict[str, float]]:
    """Random inputs and what the source returns for them: `check` compares the bundle with these anywhere.

    The sizes are those at which the shapes were measured, and the first with a batch of one. The source
    is given all of its inputs; the bundle's alone are kept. And how far the source, where it has two ways to
    compute, is from itself, for each output.

    Raises:
        ConversionError: the source does not run.
    """
    batch = batch_name(model)
    alone = sizes[0] | ({batch: 1} if batch is not None else {})
    taken, names = {str(v.name) for v in base.graph.inputs}, [str(v.name) for v in base.graph.outputs]
    samples, twice = list[tuple[Feeds, Feeds]](), list[tuple[Feeds, Feeds]]()
    for seed, tried in enumerate((alone, *sizes)):
        feeds = sample_inputs(model, tried, np.random.default_rng(seed))
        with onnx_errors(f"the source does not run at the sizes {tried}"):
            outputs = source.run(feeds)
            again = {} if source.otherwise is None else source.otherwise(feeds)
        wanted = {name: outputs[name] for name in names}
        samples.append(({name: x for name, x in feeds.items() if name in taken}, wanted))
        if again:
            twice.append(({name: again[name] for name in names}, wanted))
    return samples, differences(twice)


def source_outputs(source: Source, manifest: Manifest, feeds: Feeds) -> Feeds:
    """What the source returns for these inputs, of the outputs that the bundle was made from.

    Raises:
        ConversionError: the source does not run on them, or is not the one of the bundle.
    """
    named: list[str] = manifest.source["outputs"]
    own = {str(v.name) for v in source.model.graph.outputs}
    inner = next((name for name in named if name not in own), None)
    try:
        source = source.reading(inner, manifest.task != AS_IT_IS)
    except ConversionError as error:
        raise ConversionError(f"the bundle was made from another source: {error}") from error
    with onnx_errors("the source does not run on these inputs"):
        outputs = fixed(source, manifest.source.get("fixed", {})).run(feeds)
    missing = [name for name in named if name not in outputs]
    if missing:
        raise ConversionError(f"the source has no output {', '.join(missing)}: the bundle was made from another one")
    return {name: outputs[name] for name in named}


def _patterns(config: LoraConfig) -> tuple[str, ...]:
    chosen = config.target_modules
    assert chosen is not None
    return (chosen,) if isinstance(chosen, str) else tuple(chosen)
