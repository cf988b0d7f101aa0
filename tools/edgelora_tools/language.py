"""The graphs of a language model beside inference and training: with a cache, for generation, and what tokens cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora.manifest import GraphSet, InsertionPoint, LanguageFacts, LanguageModel
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites import recognise_composites
from edgelora_tools.gradients.shapes import dims, rank, size_of
from edgelora_tools.graphs import LOWERED, Adapted, adapt, set_outputs
from edgelora_tools.lowering import lower_nodes
from edgelora_tools.measure_shapes import batch_name, measure_shapes
from edgelora_tools.methods import LORA, AdapterMethod
from edgelora_tools.methods.prefix import PREFIX_TUNING
from edgelora_tools.mixed import stack_adapters
from edgelora_tools.normalize import normalize
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.add_in_product import add_in_product, of_adapters
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.quantize import Plan, quantize
from edgelora_tools.passes.rows import Places, annotated, rows_of
from edgelora_tools.passes.share_inputs import share_inputs
from edgelora_tools.passes.shared_heads import share_heads
from edgelora_tools.passes.slice_early import slice_early
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.score_graph import score_graph
from edgelora_tools.sources import GENERATION
from edgelora_tools.sources.base import Decoder, Source

SCORE_FILE, DECODE_FILE, MIXED_FILE = "score.onnx", "decode.onnx", "decode-mixed.onnx"
LAST = "last"


def check_language(source: Source, options: ConvertOptions) -> None:
    """Hold the source and the options against each other, whatever the task.

    Raises:
        ConversionError: the source was opened for another task, or an option makes no sense for a language model.
    """
    decoder = source.decoder
    if (options.task == GENERATION) != (decoder is not None):
        raise ConversionError(f"a source is opened for {GENERATION} or for other tasks: open it for {options.task}")
    if decoder is None:
        return
    longest = decoder.max_length
    refused = {
        "placement skip needs samples that are whole, and a cache has none: leave placement out": (
            options.placement == "skip"
        ),
        f"nothing is pooled: leave pooling {options.pooling} out": options.pooling != ConvertOptions.pooling,
        f"layers see {decoder.window:,} tokens back, and prefixes stand before all: leave prefix out of methods": (
            bool(decoder.window) and PREFIX_TUNING.graphs in options.methods
        ),
        "rows and caches are of any size: fix none": "fixed" in source.facts,
        f"the model takes {longest:,} tokens: max_length is at most that": 0 < longest < (options.max_length or 0),
    }
    for why, applies in refused.items():
        if applies:
            raise ConversionError(f"{GENERATION}: {why}")


def cached_graph(decoder: Decoder, plan: Plan | None = None) -> ir.Model:
    """The decoder with its cache, in normal form; its products quantized as `plan` says, if there is one."""
    cached = normalize(decoder.cached.clone())
    measure_shapes(cached)
    recognise_composites(cached)
    share_heads(cached)
    return cached if plan is None else quantize(cached, plan)


def language_graphs(
    decoder: Decoder,
    cached: ir.Model,
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    unpadded: bool,
) -> tuple[dict[str, ir.Model], LanguageModel]:
    """The graphs by file, and their record. `base` is the decoder without its cache, `unpadded` if blind to padding."""
    graphs = {
        SCORE_FILE: score_graph(base, points, options, unpadded),
        DECODE_FILE: decode_graph(cached, points, options),
    }
    mixed = mixed_decode_graph(cached, points, options)
    if mixed is not None:
        graphs[MIXED_FILE] = mixed
    facts = {field.name: getattr(decoder, field.name) for field in fields(LanguageFacts)}
    facts["max_length"] = options.max_length or decoder.max_length
    files = {"score": SCORE_FILE, "decode": DECODE_FILE, "decode_mixed": None if mixed is None else MIXED_FILE}
    return graphs, LanguageModel(**facts, **files)


def language_set(
    cached: ir.Model,
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    unpadded: bool,
    method: AdapterMethod,
    found: GraphSet,
) -> tuple[dict[str, ir.Model], GraphSet]:
    """The same for adapters of another method, whose other graphs are `found`; the record with both."""
    places = points if found.points is None else found.points
    score = f"score-{method.graphs}.onnx"
    graphs = {score: score_graph(base, places, options, unpadded, method)}
    before = method.before(cached, places)
    if before is not None:
        file = f"before-{method.graphs}.onnx"
        lower_nodes(before.graph, GraphBuilder(free_names(before.graph)).op, LOWERED)
        return graphs | {file: tidy(before)}, replace(found, score=score, decode=DECODE_FILE, before=file)
    decode = f"decode-{method.graphs}.onnx"
    graphs[decode] = decode_graph(cached, places, options, method)
    return graphs, replace(found, score=score, decode=decode)


def decode_graph(
    cached: ir.Model, points: Sequence[InsertionPoint], options: ConvertOptions, method: AdapterMethod = LORA
) -> ir.Model:
    """Logits `[batch, vocabulary]` of one token a row, which the input `last` `[batch]` numbers, and the cache.

    Adapters of one input share a product.
    """
    adapted = _at_last(cached, points, options, method)
    share_inputs(adapted.model.graph)
    return _finished(adapted)


def mixed_decode_graph(cached: ir.Model, points: Sequence[InsertionPoint], options: ConvertOptions) -> ir.Model | None:
    """The same with an adapter per row; None where a point takes none (`mixed.py`)."""
    adapted = _at_last(cached, points, options, LORA)
    batch = batch_name(cached)
    if batch is None or not stack_adapters(adapted.model, adapted.op, adapted.adapter_inputs, None, None, batch):
        return None
    return _finished(adapted)


def _at_last(
    cached: ir.Model, points: Sequence[InsertionPoint], options: ConvertOptions, method: AdapterMethod
) -> Adapted:
    """The adapted graph with its cache, its head and last layer computed of one token a row."""
    adapted = adapt(cached, points, options, method, dropout=False)
    op, outputs = adapted.op, dict(adapted.task.outputs)
    logits = outputs["logits"]
    assert rank(logits) == 3
    last = op.builder.input(LAST, ir.DataType.INT64, [dims(logits)[0]])
    outputs["logits"] = rows_of(op, logits, _one_a_row(op, logits, last))
    set_outputs(adapted, outputs)
    slice_early(adapted.model)
    return Adapted(
        adapted.model, GraphBuilder(free_names(adapted.model.graph)).op, adapted.task, adapted.adapter_inputs
    )


def _one_a_row(op: OpBuilder, x: ir.Value, last: ir.Value) -> Places:
    """The places of the tokens `last` `[batch]` of x `[batch, sequence, ...]`."""
    batch, sequence = (op.Squeeze(size_of(op, x, axis), [0]) for axis in (0, 1))
    kept = op.Add(op.Mul(op.Range(0, batch, 1), sequence), last)
    is_last = op.Equal(op.Range(0, sequence, 1), op.Unsqueeze(last, [1]))
    ones = op.Reshape(op.Cast(is_last, to=ir.DataType.INT64), [-1])
    places = op.Mul(op.CumSum(ones, op.Constant(value_int=0)), ones)
    return annotated(kept, places, dims(x)[0], "*".join(map(str, dims(x)[:2])))


def _finished(adapted: Adapted) -> ir.Model:
    lower_nodes(adapted.model.graph, adapted.op, LOWERED)
    add_in_product(adapted.model, of_adapters)
    return tidy(adapted.model)
