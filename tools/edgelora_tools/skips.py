"""Skip-LoRA: adapters from the input of every layer straight to the last hidden state (arXiv:2410.21073).

    H' = H + Σ_l s·(h_l·A_l)·B_l

No adapter changes any h_l, so that the base runs once a sample. A pooling that is linear (mean, cls) commutes with the
sum, pool(H') = pool(H) + Σ_l s·(pool(h_l)·A_l)·B_l, and one pooled vector a layer is all that is kept of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora.errors import ConversionError
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.shapes import dims, rank
from edgelora_tools.heads import pool
from edgelora_tools.insertion import SKIP, SKIP_INTO, Site
from edgelora_tools.measure_shapes import Sizes
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.prefix import KEPT, block_of, sizes_of_inputs, values_before

POOLED_TASKS = ("sequence-classification", "regression", "sentence-embedding")


@dataclass(frozen=True)
class Skips:
    """The base with the places of its skips marked, and in two: what is kept of a sample, and what goes on from it.

    `pooled` says whether `suffix` takes pooled vectors, and gives one.
    """

    base: ir.Model
    prefix: ir.Model
    suffix: ir.Model
    pooled: bool


def with_skips(base: ir.Model, sites: Sequence[Site], sizes: Sizes, task: str, pooling: str) -> Skips:
    """Mark a point `BLOCK.skip` for each block that holds products, from its input to the base's output.

    Raises:
        ConversionError: there are no numbered blocks, a block has no single input of `[batch, positions, features]`, or
            the task does not read the last hidden state.
    """
    base = sizes_of_inputs(base.clone())
    outputs = [y for y in base.graph.outputs if y.shape is not None and rank(y) == 3]
    if len(base.graph.outputs) != 1 or not outputs:
        shown = ", ".join(f"{y.name} {y.shape}" for y in base.graph.outputs)
        raise ConversionError(f"placement skip adds to one last hidden state of rank 3; the task reads {shown}")
    points = [site.point for site in sites]
    blocks = list(dict.fromkeys(block for p in points if (block := block_of(p.id)) is not None))
    if not blocks:
        raise ConversionError("placement skip reads the input of every layer, and no product stands in a numbered one")
    names: list[str] = []
    for number, block in enumerate(blocks):
        found = values_before(base, [p for p in points if block_of(p.id) in blocks[number:]], sizes)
        shapes = [dims(v) for v in found]
        if len(found) != 1 or shapes[0][:-1] != dims(outputs[0])[:-1] or not isinstance(shapes[0][-1], int):
            raise ConversionError(
                f"placement skip: {block} has no single input like the last hidden state, but {shapes}"
            )
        names.append(str(found[0].name))
    pooled = task in POOLED_TASKS
    marked = _mark(base.clone(), dict(zip(blocks, names, strict=True)))
    prefix = _prefix(base, [*names, str(outputs[0].name)], pooling if pooled else None)
    suffix = _suffix(prefix, blocks, str(outputs[0].name))
    return Skips(marked, prefix, suffix, pooled)


def _mark(model: ir.Model, inputs: dict[str, str]) -> ir.Model:
    """A node that nothing reads for each block, which `find_sites` takes for a site."""
    graph = model.graph
    values = {v.name: v for v in (*graph.inputs, *(y for node in graph for y in node.outputs))}
    into = str(graph.outputs[0].name)
    for block, name in inputs.items():
        x = values[name]
        node = ir.Node("", "Identity", [x], name=f"{block}.skip")
        node.metadata_props.update({SKIP: f"{block}.skip", SKIP_INTO: into})
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f"{block}.skip.input", x.shape, x.type
        graph.append(node)
    return model


def _prefix(base: ir.Model, names: Sequence[str], pooling: str | None) -> ir.Model:
    """Inputs -> the values of these names, pooled unless `pooling` is None; the last is the hidden state itself."""
    model = base.clone()
    graph = model.graph
    values = {v.name: v for v in (*graph.inputs, *(y for node in graph for y in node.outputs))}
    op = GraphBuilder(free_names(graph)).op
    made: list[ir.Value] = []
    for number, name in enumerate(names):
        value = values[name]
        graph.outputs[:] = [value]
        kept = op.Identity(value) if pooling is None else pool(op, graph, pooling, None)
        shape = dims(value)
        kept.shape = ir.Shape(shape if pooling is None else [shape[0], shape[-1]])
        kept.type, kept.name = value.type, KEPT.format(number)
        made.append(kept)
    graph.outputs[:] = made
    common.RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [x for x in graph.inputs if x.uses()]
    return model


def _suffix(prefix: ir.Model, blocks: Sequence[str], name: str) -> ir.Model:
    """The kept values -> the last of them, with the places of the skips marked."""
    inputs = [ir.Input(str(v.name), shape=v.shape, type=v.type) for v in prefix.graph.outputs]
    last = ir.Node("", "Identity", [inputs[-1]], name=name)
    last.outputs[0].name, last.outputs[0].shape, last.outputs[0].type = name, inputs[-1].shape, inputs[-1].type
    graph = ir.Graph(inputs, last.outputs, nodes=[last], opset_imports=dict(prefix.graph.opset_imports), name="skip")
    model = ir.Model(graph, ir_version=prefix.ir_version)
    return _mark(model, {block: str(x.name) for block, x in zip(blocks, inputs, strict=False)})
