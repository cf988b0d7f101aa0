"""Prefix tuning: trained keys and values before those of the words, in every attention (arXiv:2101.00190).

    Y = softmax([Q·Kₚᵀ·s, Q·Kᵀ·s + M])·[Vₚ, V]

Every token sees them, and each has its position behind them: as PEFT's, they are what a cache of earlier tokens holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora.manifest import ATTENTION_OP, MOST_POSITIONS, AdapterInput, InsertionPoint
from edgelora.methods.prefix import KEY, VALUE
from edgelora_tools.attention import Attention, find_attentions, scaled
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.shapes import dims, shaped
from edgelora_tools.insertion import Site, Use, numbered, scope_of
from edgelora_tools.methods.base import AdapterMethod, Placed
from edgelora_tools.passes.without_cache import PRESENT
from edgelora_tools.positions import given_positions, position_tables

_LEAVE_OUT = "leave prefix out of methods"


class Prefix:
    """Keys and values that belong to no word."""

    graphs = "prefix"
    merging = None

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        found, strange = find_attentions(model)
        length = dims(found[0].values)[2] if found else None
        strange += [one.node for one in found if dims(one.values)[2] != length or dims(one.scores)[2] != length]
        if strange or not isinstance(length, str):
            shown = ", ".join(str(node.name) for node in strange)
            raise ConversionError(
                "prefix tuning needs attention of tokens to each other as softmax(Q·Kᵀ·s + mask)·V over heads, and "
                f"{f'{shown} has another form' if strange else 'the model has none'}: {_LEAVE_OUT}"
            )
        tables = position_tables(model, length)
        if not tables and given_positions(model) is None:
            raise ConversionError(
                f"prefix tuning moves every token's position, and the model has no table of them: {_LEAVE_OUT}"
            )
        most, sites = min((table.positions for table in tables), default=MOST_POSITIONS), list[Site]()
        taken: set[str] = set()
        for layer, one in enumerate(found):
            (y, *_) = one.node.outputs
            path = scope_of(one.node) or f"attention.{layer}"
            unique = numbered(path, taken)  # a layer may be called several times
            point = InsertionPoint(unique, ATTENTION_OP, most, one.heads * one.size, layer)
            sites.append(Site(point, (Use(one.product, one.node, y),)))
        return sites

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        shape = (f"{point.id}.virtual_tokens", point.out_features)
        return tuple(AdapterInput(f"{point.id}.{part}", shape, 0.0) for part in (KEY, VALUE))

    def place(self, op: OpBuilder, sites: Sequence[Site], dropout: bool) -> Placed:
        model = ir.Model(op.builder.graph, ir_version=10)
        attentions = {one.node: one for one in find_attentions(model)[0]}
        tables = position_tables(model, str(dims(next(iter(attentions.values())).values)[2]))
        inputs: list[ir.Value] = []
        for site in sites:
            key, value = (op.builder.input(x.name, ir.DataType.FLOAT, list(x.shape)) for x in self.inputs(site.point))
            _prepend(op, attentions[site.uses[0].product], key, value)
            inputs += [key, value]
        count = op.Shape(inputs[0], start=0, end=1)
        given = given_positions(model)
        readers = [(table.node, 1) for table in tables] if given is None else list(given.uses())
        for reader, i in readers:
            places = reader.inputs[i]
            assert places is not None and places.dtype is not None
            moved = op.Add(places, op.Cast(count, to=places.dtype))
            reader.replace_input_with(i, shaped(moved, dims(places), places))
        return Placed(tuple(inputs))

    def norms(self, sites: Sequence[Site], opset: int) -> None:
        return None

    def before(self, cached: ir.Model, places: Sequence[InsertionPoint]) -> ir.Model:
        """The keys and values themselves, their heads apart."""
        kept = {str(y.name): y for y in cached.graph.outputs if str(y.name).startswith(PRESENT)}
        graph = ir.Graph([], [], nodes=[], opset_imports=cached.opset_imports, name="before")
        op = GraphBuilder(graph).op
        for layer, place in enumerate(places):
            for spec, part in zip(self.inputs(place), ("key", "value"), strict=True):
                name = f"{PRESENT}{layer}.{part}"
                x = op.builder.input(spec.name, ir.DataType.FLOAT, list(spec.shape))
                _, heads, _, size = dims(kept[name])
                apart = op.Unsqueeze(op.Transpose(op.Reshape(x, [0, heads, size]), perm=[1, 0, 2]), [0])
                shaped(apart, [1, heads, spec.shape[0], size], x).name = name
                graph.outputs.append(apart)
        return ir.Model(graph, ir_version=cached.ir_version)


def _prepend(op: OpBuilder, to: Attention, key: ir.Value, value: ir.Value) -> None:
    """Let the attention see these keys and values `[tokens, heads·size]` first."""
    q, scores, values = to.product.inputs[0], to.scores, to.values
    assert q is not None
    count = dims(key)[0]
    seen = f"{dims(values)[2]}+{count}"
    own = shaped(op.MatMul(q, scaled(op, _heads(op, to, key, [1, 2, 0]), to.of_keys)), [*dims(q)[:3], count], q)
    both = op.Concat(scaled(op, own, to.of_scores), scores, axis=-1)
    to.reader.replace_input_with(0, shaped(both, [*dims(scores)[:3], seen], scores))
    shaped(to.reader.outputs[-1], dims(both), scores)
    batch, heads, _, size = dims(values)
    to_batch = op.Concat(op.Shape(values, start=0, end=1), [1, 1, 1], axis=0)
    rows = shaped(op.Expand(_heads(op, to, value, [1, 0, 2]), to_batch), [batch, heads, count, size], values)
    all_values = op.Concat(rows, values, axis=2)
    to.node.replace_input_with(1, shaped(all_values, [batch, heads, seen, size], values))


def _heads(op: OpBuilder, to: Attention, x: ir.Value, perm: Sequence[int]) -> ir.Value:
    """`[tokens, heads·size]` as `[tokens, heads, size]` with its axes in another order, a head for every one of Q's."""
    sizes = (dims(x)[0], to.heads, to.size)
    parts = shaped(op.Reshape(x, [0, to.heads, to.size]), sizes, x)
    turned = shaped(op.Transpose(parts, perm=list(perm)), [sizes[axis] for axis in perm], x)
    if to.shared == 1:
        return turned
    _, second, third = dims(turned)
    one = shaped(op.Unsqueeze(turned, [1]), [to.heads, 1, second, third], x)
    repeated = shaped(op.Expand(one, [1, to.shared, 1, 1]), [to.heads, to.shared, second, third], x)
    count = [-1 if isinstance(d, str) else d for d in (second, third)]
    return shaped(op.Reshape(repeated, [to.heads * to.shared, *count]), [to.heads * to.shared, second, third], x)


PREFIX_TUNING: AdapterMethod = Prefix()
