"""Cut the base before its last layers: a frozen prefix to run once a sample, and a suffix that adapters join.

The cut is the cheapest to keep: of all sets of values that separate what adapters change from the model's
heavy part, the one with the fewest bytes a sample, and of equal ones the latest (a minimum cut, Ford and
Fulkerson 1956). What is light and follows from the inputs alone (attention masks, rotary tables) costs nothing:
the suffix computes it again.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConfigError, ConversionError
from edgelora.manifest import InsertionPoint
from edgelora_tools.backward import values_read
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites.quantized import is_quantized
from edgelora_tools.frozen import is_frozen
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.insertion import POINT, Site, find_sites
from edgelora_tools.measure_shapes import Sizes, batch_name
from edgelora_tools.passes.free_names import free_names

_PRODUCTS = frozenset({
    "MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "ConvInteger", "MatMulInteger", "Attention", "LSTM", "GRU",
    "RNN", "If", "Loop", "Scan", "DeformConv", "FusedMatMul",
})  # fmt: skip
_TABLE = 1024  # elements from which a frozen tensor of two or more axes is a weight
_UNBOUNDED = 1 << 60
KEPT = "prefix.{}"  # names of the values at the cut, in both graphs


@dataclass(frozen=True)
class Cut:
    """A base in two: `prefix` maps the inputs to the values `kept`; `suffix` maps those, and inputs, to the outputs.

    Each kept value leaves the prefix and enters the suffix as `[batch, ...]`, so that it can be kept by the sample.
    """

    prefix: ir.Model
    suffix: ir.Model
    kept: tuple[ir.Value, ...]


def block_of(point_id: str) -> str | None:
    """The block that a point stands in: its path up to the first number (`encoder.layer.3`, `layer2.0`), or None."""
    found = re.match(r"(?:.*?\.)?\d+(?=\.|$)", point_id)
    return found[0] if found is not None else None


def last_blocks(points: Sequence[InsertionPoint], count: int) -> tuple[InsertionPoint, ...]:
    """The points of the last `count` blocks that have any, in the order of the graph.

    Where no point stands in a numbered block, as those of recurrent layers, each is a block of its own.

    Raises:
        ConversionError: there are fewer.
    """
    named = {point.id: block_of(point.id) for point in points}
    if not any(named.values()):
        named = {point.id: point.id for point in points}
    blocks = list(dict.fromkeys(block for block in named.values() if block is not None))
    if not 1 <= count <= len(blocks):
        raise ConversionError(
            f"train_last {count}: the insertion points stand in {len(blocks)} layers; choose 1 to {len(blocks)}"
        )
    return tuple(point for point in points if named[point.id] in blocks[-count:])


def cut_before(base: ir.Model, points: Sequence[InsertionPoint], sizes: Sizes) -> Cut:
    """Cut the base before everything that adapters at `points` can change; `sizes` are those that bytes are told at.

    Raises:
        ConversionError: the batch has a fixed size, nothing that goes by the sample separates the two parts, or
            modules of one name cannot be told apart in the suffix.
    """
    base = sizes_of_inputs(base.clone())
    values = values_before(base, points, sizes)
    names = [str(v.name) for v in values]
    batch = batch_name(base)
    assert batch is not None  # `values_before` has asked
    wanted = {point.id for point in points}
    sites = [site for site in find_sites(base) if site.point.id in wanted]
    for site in _otherwise_named(sites, _suffix(base, names, batch)):
        site.uses[0].product.metadata_props[POINT] = site.point.id
    cut = Cut(_prefix(base, names, batch), _suffix(base, names, batch), tuple(values))
    if wrong := _otherwise_named(sites, cut.suffix):
        raise ConversionError(
            f"cut before the last layers, {', '.join(site.point.id for site in wrong)} cannot be told from others of "
            "the name: export with names"
        )
    return cut


def values_before(base: ir.Model, points: Sequence[InsertionPoint], sizes: Sizes) -> list[ir.Value]:
    """The values to cut at, by name; see `cut_before`."""
    batch = batch_name(base)
    if batch is None:
        raise ConversionError("a prefix is kept by the sample, and the inputs have no dynamic batch: export with one")
    wanted = {point.id for point in points}
    blocks = {block_of(point.id) or point.id for point in points}
    every = find_sites(base)
    sites = [site for site in every if site.point.id in wanted]
    readers = _readers(base.graph)
    changed = _downstream([use.reader for site in sites for use in site.uses], readers)
    inside = [
        use.product for site in every if (block_of(site.point.id) or site.point.id) in blocks for use in site.uses
    ]
    heavy = _heavy_values(base.graph, _downstream(inside, readers), batch)
    ends = {
        y
        for node in base.graph
        if node not in changed
        for y in node.outputs
        if y.is_graph_output() or any(reader in changed for reader in readers.get(y, ()))
    }
    values = _minimum_cut([n for n in base.graph if n not in changed], heavy, ends, lambda v: _bytes(v, batch, sizes))
    if values == []:
        raise ConversionError(f"no product comes before {sites[0].point.id}: there is nothing to keep of a prefix")
    if values is None:
        raise ConversionError(
            f"the model cannot be cut before {sites[0].point.id}: no values with the batch first separate it from what "
            "comes before"
        )
    return sorted(values, key=lambda v: str(v.name))


def sizes_of_inputs(model: ir.Model) -> ir.Model:
    """Read sizes from the inputs: Shape(v) becomes the sizes of inputs that v's measured shape names.

    So no mask depends on hidden states for their size alone.
    """
    graph = model.graph
    where: dict[str, tuple[ir.Value, int]] = {}
    for x in sorted(graph.inputs, key=lambda x: (x.name != "attention_mask", len(dims(x)))):
        for axis, d in enumerate(dims(x)):
            if isinstance(d, str):
                where.setdefault(d, (x, axis))
    op = GraphBuilder(free_names(graph)).op
    for node in list(graph):
        v = node.inputs[0] if node.op_type == "Shape" and node.domain in ("", "ai.onnx") else None
        if v is None or v.shape is None or v in graph.inputs:
            continue
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(v.shape))
        sizes = dims(v)[start:end]
        if not sizes or not all(isinstance(d, int) or d in where for d in sizes):
            continue
        parts = [
            op.Constant(value_ints=[d])
            if isinstance(d, int)
            else op.Shape(where[str(d)][0], start=where[str(d)][1], end=where[str(d)][1] + 1)
            for d in sizes
        ]
        sized = op.Concat(*parts, axis=0)
        old = node.outputs[0]
        sized.shape, sized.type = old.shape, old.type
        for user, position in list(old.uses()):
            user.replace_input_with(position, sized)
        graph.outputs[:] = [sized if y is old else y for y in graph.outputs]
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return model


Readers = dict[ir.Value, list[ir.Node]]


def _readers(graph: ir.Graph) -> Readers:
    """By value the nodes of the main graph that depend on it, by themselves or in a body."""
    readers: Readers = {}
    for node in graph:
        for x in dict.fromkeys(values_read(node)):
            readers.setdefault(x, []).append(node)
    return readers


def _downstream(nodes: Sequence[ir.Node], readers: Readers) -> set[ir.Node]:
    """The nodes, and those that depend on any of them."""
    front, seen = list(nodes), set(nodes)
    while front:
        for y in front.pop().outputs:
            new = [node for node in readers.get(y, ()) if node not in seen]
            seen.update(new)
            front.extend(new)
    return seen


def _heavy_values(graph: ir.Graph, passed_over: Collection[ir.Node], batch: str) -> set[ir.Value]:
    """Per-sample results that are too heavy to compute again: of products by weights, tables, and products of these."""
    heavy: set[ir.Value] = set()
    behind: set[ir.Value] = set()
    for node in graph:
        read = values_read(node)
        follows = any(x in behind for x in read)
        weighs = any(is_frozen(x) and _weighs(node, x) for x in read)
        mine = [y for y in node.outputs if _axis(y, batch) is not None]
        if (weighs or (follows and node.op_type in _PRODUCTS)) and mine:
            behind.update(node.outputs)
            if node not in passed_over:
                heavy.update(mine)
        elif follows:
            behind.update(node.outputs)
    return heavy


def _weighs(node: ir.Node, frozen: ir.Value) -> bool:
    """Whether a frozen operand makes the node heavy: a matrix or kernel of a product, or a table (of embeddings)."""
    shape = dims(frozen)
    product = len(shape) == 2 or node.op_type.startswith("Conv")
    elements = math.prod(d for d in shape if isinstance(d, int))
    multiplies = (node.op_type in _PRODUCTS and product) or is_quantized(node)
    return len(shape) > 1 and (multiplies or elements > _TABLE)


def _axis(value: ir.Value, batch: str) -> int | None:
    """The axis of the samples: the first, or the only one there is; recurrent layers have it behind that of steps."""
    axes = [] if value.shape is None else [axis for axis, d in enumerate(dims(value)) if d == batch]
    return axes[0] if axes[:1] == [0] or len(axes) == 1 else None


def _turned(op: Any, value: ir.Value, axis: int, back: bool = False) -> ir.Value:
    """The value with its axis of samples first; with `back` a value that is so, as it was."""
    rank = len(dims(value))
    order = [axis, *(a for a in range(rank) if a != axis)]
    order = [order.index(a) for a in range(rank)] if back else order
    made = op.Transpose(value, perm=order)
    made.type, made.shape = value.type, ir.Shape([dims(value)[a] for a in order])
    return made


def _bytes(value: ir.Value, batch: str, sizes: Sizes) -> int:
    """What a sample's share of the value takes; without bound where it does not go by the sample."""
    axis = _axis(value, batch)
    if value.dtype is None or axis is None or value.dtype == ir.DataType.STRING:
        return _UNBOUNDED
    known = {name: size for name, size in sizes.items() if name != batch}
    try:
        rest = [evaluate_dimension("?" if d is None else d, known) for a, d in enumerate(dims(value)) if a != axis]
    except ConfigError:
        return _UNBOUNDED
    return max(math.prod(rest) * value.dtype.numpy().itemsize, 1)


Place = tuple[ir.Value | None, int]
Flow = dict[Place, dict[Place, int]]


def _minimum_cut(
    nodes: Sequence[ir.Node], heavy: set[ir.Value], ends: set[ir.Value], size: Callable[[ir.Value], int]
) -> list[ir.Value] | None:
    """The values of least size between `heavy` and `ends`, as late as can be; None if there are none with a bound.

    Each value is an edge from (v, 0) to (v, 1) with its size as capacity; the other edges have no bound.
    """
    source: Place = (None, 0)
    sink: Place = (None, 1)
    left: Flow = {source: {}, sink: {}}

    def edge(a: Place, b: Place, capacity: int) -> None:
        left.setdefault(a, {})[b] = capacity
        left.setdefault(b, {}).setdefault(a, 0)

    for node in nodes:
        for y in node.outputs:
            edge((y, 0), (y, 1), size(y))
            if y in heavy:
                edge(source, (y, 0), _UNBOUNDED)
            if y in ends:
                edge((y, 1), sink, _UNBOUNDED)
            for x in dict.fromkeys(values_read(node)):
                if x.producer() is not None:
                    edge((x, 1), (y, 0), _UNBOUNDED)
    while (way := _way(left, source, sink)) is not None:
        pushed = min(left[a][b] for a, b in way)
        if pushed >= _UNBOUNDED:
            return None
        for a, b in way:
            left[a][b] -= pushed if left[a][b] < _UNBOUNDED else 0
            left[b][a] += pushed
    into: dict[Place, list[Place]] = {}
    for a, following in left.items():
        for b, capacity in following.items():
            if capacity > 0:
                into.setdefault(b, []).append(a)
    front: list[Place] = [sink]
    reaching = set(front)
    while front:
        for a in into.get(front.pop(), ()):
            if a not in reaching:
                reaching.add(a)
                front.append(a)
    return [v for v, side in left if side == 1 and v is not None and (v, 1) in reaching and (v, 0) not in reaching]


def _way(left: Flow, source: Place, sink: Place) -> list[tuple[Place, Place]] | None:
    """The edges of a shortest way with capacity left."""
    came: dict[Place, Place] = {source: source}
    front = deque([source])
    while front:
        place = front.popleft()
        for following, capacity in left[place].items():
            if capacity > 0 and following not in came:
                came[following] = place
                if following == sink:
                    way: list[tuple[Place, Place]] = []
                    while following != source:
                        way.append((came[following], following))
                        following = came[following]
                    return way[::-1]
                front.append(following)
    return None


def _prefix(base: ir.Model, names: Sequence[str], batch: str) -> ir.Model:
    """Inputs -> the values of these names, the axis of samples first."""
    model = base.clone()
    op = GraphBuilder(free_names(model.graph)).op
    axes = [_axis(value, batch) or 0 for value in _by_name(model.graph, names)]
    values = [_turned(op, v, axis) if axis else v for v, axis in zip(_by_name(model.graph, names), axes, strict=True)]
    model.graph.outputs[:] = values
    common.RemoveUnusedNodesPass()(model)
    model.graph.inputs[:] = [x for x in model.graph.inputs if x.uses()]
    for number, value in enumerate(values):
        value.name = KEPT.format(number)
    return model


def _suffix(base: ir.Model, names: Sequence[str], batch: str) -> ir.Model:
    """The values of these names, as inputs beside the model's own -> outputs."""
    model = base.clone()
    graph = model.graph
    op = GraphBuilder(free_names(graph)).op
    for number, value in enumerate(_by_name(graph, names)):
        axis, sizes = _axis(value, batch) or 0, dims(value)
        shape = ir.Shape([sizes[axis], *sizes[:axis], *sizes[axis + 1 :]])
        kept = ir.Input(KEPT.format(number), shape=shape, type=value.type)
        uses = list(value.uses())
        graph.inputs.append(kept)
        stands = _turned(op, kept, axis, back=True) if axis else kept
        for node, position in uses:
            node.replace_input_with(position, stands)
        graph.outputs[:] = [stands if y is value else y for y in graph.outputs]
    common.TopologicalSortPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return model


def _by_name(graph: ir.Graph, names: Sequence[str]) -> list[ir.Value]:
    made = {y.name: y for node in graph for y in node.outputs}
    return [made[name] for name in names]


def _otherwise_named(sites: Sequence[Site], suffix: ir.Model) -> list[Site]:
    """The sites that are not whole in the suffix under the same id: the same names are numbered by their order."""
    there = {site.point.id: [use.output.name for use in site.uses] for site in find_sites(suffix)}
    return [s for s in sites if there.get(s.point.id) != [use.output.name for use in s.uses]]
