"""Sets of graphs beside LoRA's of the whole model: for another adapter method, or going on from a frozen prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from edgelora.manifest import GraphSet, InsertionPoint, Prefix
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.graphs import LOWERED, forward_graph, prune, specs
from edgelora_tools.lowering import lower_nodes
from edgelora_tools.measure_shapes import Sizes
from edgelora_tools.methods import AdapterMethod
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.fold_batch_norms import fold_batch_norms
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.prefix import cut_before, last_blocks
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.passes.whole_sums import whole_sums
from edgelora_tools.skips import Skips
from edgelora_tools.training_graphs import training_graphs


def graphs_of_method(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    method: AdapterMethod,
    unpadded: bool,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, ir.Model], GraphSet]:
    """The graphs for adapters of another method than LoRA, by file, and their record; without dropout.

    Raises:
        ConversionError: the base has no place for such adapters.
    """
    file, ending = f"forward-{method.graphs}.onnx", f"-{method.graphs}"
    sites = method.sites(base, points)
    places = tuple(site.point for site in sites)
    forward = forward_graph(base, places, options, method).model
    trained, training, _ = training_graphs(base, places, options, None, unpadded, ending, None, progress, method)
    inputs = tuple(x for place in places for x in method.inputs(place))
    norms = method.norms(sites, base.opset_imports[""])
    graphs, norms_file = {file: forward, **trained}, None if norms is None else f"norms{ending}.onnx"
    if norms is not None and norms_file is not None:
        graphs[norms_file] = norms
    return graphs, GraphSet(file, training, inputs, norms_file, None if places == tuple(points) else places)


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
    op = GraphBuilder(free_names(prefix.graph)).op
    fold_batch_norms(prefix, op)
    lower_nodes(prefix.graph, op, LOWERED)
    file, forward = f"prefix-{name}.onnx", f"forward-{name}.onnx"
    graphs = {file: tidy(whole_sums(prefix)), forward: forward_graph(suffix, chosen, options).model}
    trained, training, _ = training_graphs(suffix, chosen, options, sizes, unpadded, f"-{name}")
    return graphs | trained, Prefix(name, file, kept, tuple(p.id for p in chosen), forward, training)
