"""Prompt tuning: trained vectors before those of the words (Lester et al. 2021, arXiv:2104.08691).

What a model is told of tokens it is told of the virtual ones too, as by PEFT: they count, are of segment 0, and have
the first positions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora.manifest import EMBEDDING_OP, MOST_POSITIONS, AdapterInput, InsertionPoint
from edgelora.methods.prompt import PROMPT
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.frozen import is_real
from edgelora_tools.gradients.shapes import Dim, dims, rank, shaped
from edgelora_tools.insertion import Site, Use, module_path
from edgelora_tools.methods.base import AdapterMethod, Placed
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.without_cache import PAST, PRESENT
from edgelora_tools.positions import POSITIONS, position_tables
from edgelora_tools.virtual_tokens import VirtualTokens

_COUNT, _ALL = "virtual_tokens", "all_tokens"
_VIEWS = ("Cast", "Reshape", "Identity")
_IDS, _MASK, _SEGMENTS = "input_ids", "attention_mask", "token_type_ids"
_LEAVE_OUT = "leave prompt out of methods"


class Prompt:
    """Virtual tokens before the word embeddings."""

    graphs = "prompt"
    merging = None

    def sites(self, model: ir.Model, points: Sequence[InsertionPoint]) -> list[Site]:
        found = _word_embeddings(model)
        if len(found) != 1:
            shown = ", ".join(str(node.name) for node, _ in found) or "none"
            raise ConversionError(
                "prompt tuning needs the one table of words, which tokens `[batch, length]` index; the model "
                f"has {shown}: {_LEAVE_OUT}"
            )
        ((node, y),) = found
        module, ids = node.inputs[0], _tokens(node)
        assert module is not None and ids is not None
        _, length = dims(ids)
        strange = [
            str(x.name)
            for x in model.graph.inputs
            if length in dims(x) and (dims(x) != dims(ids) or x.name not in (ids.name, _MASK, _SEGMENTS, POSITIONS))
        ]
        if strange:
            raise ConversionError(
                f"prompt tuning does not know what {', '.join(strange)} would be of virtual tokens: {_LEAVE_OUT}"
            )
        tables = position_tables(model, str(length))
        most = min((table.positions for table in tables), default=MOST_POSITIONS)
        point = InsertionPoint(module_path(node, module, y), EMBEDDING_OP, most, int(str(dims(y)[-1])))
        return [Site(point, (Use(node, node, y),))]

    def inputs(self, point: InsertionPoint) -> tuple[AdapterInput, ...]:
        return (AdapterInput(f"{point.id}.{PROMPT}", (_COUNT, point.out_features), 0.0),)

    def place(self, op: OpBuilder, sites: Sequence[Site], dropout: bool) -> Placed:
        ((site,), graph) = sites, op.builder.graph
        node, words = site.uses[0].product, site.uses[0].output
        ids = _tokens(node)
        assert ids is not None
        own = str(dims(ids)[1])
        whole = f"{own}+{_COUNT}"
        gathers, between = _gathers(words)
        _rename(graph, own, whole, except_for=between)
        (spec,) = self.inputs(site.point)
        prompt = op.builder.input(spec.name, ir.DataType.FLOAT, list(spec.shape))
        count = op.Shape(prompt, start=0, end=1)
        told = {str(x.name): x for x in graph.inputs if x is not prompt and dims(x) == dims(ids)}
        of_all: dict[str, ir.Value] = {}
        for name, x in told.items():
            readers = [(reader, i) for reader, i in x.uses() if reader not in gathers]
            of_all[name] = shaped(_with_virtual(op, x, count), [dims(ids)[0], whole], x)
            for reader, i in readers:
                reader.replace_input_with(i, of_all[name])
        for gather in gathers:
            gather.replace_input_with(1, ids)
        readers, is_output = list(words.uses()), words in graph.outputs
        ones = op.Concat(op.Shape(ids, start=0, end=1), [1, 1], axis=0)
        before = shaped(op.Expand(prompt, ones), [dims(ids)[0], *spec.shape], prompt)
        both = shaped(op.Concat(before, words, axis=1), [dims(ids)[0], whole, spec.shape[1]], prompt)
        for reader, i in readers:
            reader.replace_input_with(i, both)
        if is_output:
            both.name, words.name = words.name, f"{words.name}.{own}"
            graph.outputs[:] = [both if v is words else v for v in graph.outputs]
        return Placed((prompt,), VirtualTokens(count, of_all.get(_MASK), whole, own))

    def norms(self, sites: Sequence[Site], opset: int) -> None:
        return None

    def before(self, cached: ir.Model, places: Sequence[InsertionPoint]) -> ir.Model:
        """What the decoder makes of the vectors, as of the first tokens of a text."""
        model = cached.clone()
        graph = model.graph
        op, ((_, words),), (spec,) = GraphBuilder(free_names(graph)).op, _word_embeddings(model), self.inputs(places[0])
        prompt = op.builder.input(spec.name, ir.DataType.FLOAT, list(spec.shape))
        count = op.Shape(prompt, start=0, end=1)
        row = op.Concat([1], count, axis=0)
        told = {
            _IDS: op.Expand(op.Constant(value_int=0), row),
            _MASK: op.Expand(op.Constant(value_int=1), row),
            POSITIONS: op.Unsqueeze(op.Range(0, op.Squeeze(count, [0]), 1), [0]),
        }
        for x in [x for x in graph.inputs if str(x.name).startswith(PAST)]:
            empty = np.zeros([1 if d == dims(x)[0] else d if isinstance(d, int) else 0 for d in dims(x)], np.float32)
            told[str(x.name)] = op.Constant(value=ir.tensor(empty))
        words.replace_all_uses_with(shaped(op.Unsqueeze(prompt, [0]), dims(words), words))
        for x in [x for x in graph.inputs if x is not prompt]:
            x.replace_all_uses_with(shaped(told[str(x.name)], dims(x), x))
            graph.inputs.remove(x)
        graph.outputs[:] = [y for y in graph.outputs if str(y.name).startswith(PRESENT)]
        common.TopologicalSortPass()(model)
        common.RemoveUnusedNodesPass()(model)
        return model


def _word_embeddings(model: ir.Model) -> list[tuple[ir.Node, ir.Value]]:
    """The Gathers from frozen tables by an input of tokens, but for those of segments and positions; and the words,
    which are what they gather or, of a table of codes, the codes' rows times their scales."""
    return [
        (node, words)
        for node in model.graph
        if node.op_type == "Gather"
        and node.domain in ("", "ai.onnx")
        and node.attributes.get_int("axis", 0) == 0
        and node.inputs[0] is not None
        and node.inputs[0].const_value is not None
        and (words := _words(node)) is not None
        and (ids := _tokens(node)) is not None
        and ids.name not in (_MASK, _SEGMENTS, POSITIONS)
        and words.shape is not None
        and rank(words) == 3
    ]


def _words(node: ir.Node) -> ir.Value | None:
    """The rows of a table that a Gather reads as real numbers; None if it reads a table's scales or others."""
    (rows,) = node.outputs
    if is_real(node.inputs[0]):
        times = [user for user, _ in rows.uses() if user.op_type == "Mul"]
        return None if any(len(_gathers(user.outputs[0])[0]) == 2 for user in times) else rows
    casts = [user for user, _ in rows.uses() if user.op_type == "Cast"]
    products = [user.outputs[0] for cast in casts for user, _ in cast.outputs[0].uses() if user.op_type == "Mul"]
    return next((y for y in products if len(_gathers(y)[0]) == 2), None)


def _gathers(words: ir.Value) -> tuple[list[ir.Node], set[ir.Value]]:
    """The Gathers whose rows, or whose codes' rows times their scales, are `words`; and the values up to these."""
    gathers, between, front = list[ir.Node](), {words}, [words]
    while front:
        node = front.pop().producer()
        if node is not None and node.op_type == "Gather":
            gathers.append(node)
        elif node is not None and (node.op_type == "Cast" or (node.op_type == "Mul" and len(between) == 1)):
            front += [x for x in node.inputs if x is not None]
            between |= set(front)
    return gathers, between


def _tokens(node: ir.Node) -> ir.Value | None:
    """The input `[batch, length]` that a Gather from a frozen table is indexed by."""
    x = node.inputs[1]
    while x is not None and (before := x.producer()) is not None and before.op_type in _VIEWS:
        source = before.inputs[0]
        if source is None or source.shape is None or x.shape is None or dims(source) != dims(x):
            return None
        x = source
    if x is None or not x.is_graph_input() or x.shape is None or len(x.shape) != 2:
        return None
    return x if all(isinstance(d, str) for d in dims(x)) else None


def _rename(graph: ir.Graph, own: str, whole: str, except_for: Collection[ir.Value]) -> None:
    """Call the dimension of tokens by another name in all that is computed: these are more than in the inputs."""
    word = re.compile(rf"(?<![\w.]){re.escape(own)}(?![\w.])")

    def renamed(d: Dim) -> Dim:
        return d if not isinstance(d, str) else whole if d == own else word.sub(_ALL, d)

    for value in (y for node in graph for y in node.outputs):
        if value.shape is not None and value not in except_for:
            value.shape = ir.Shape([renamed(d) for d in dims(value)])


def _with_virtual(op: OpBuilder, x: ir.Value, count: ir.Value) -> ir.Value:
    """What the model is told of the tokens `x` `[batch, length]`, with that of the virtual ones before it.

    The mask keeps them, their segment is 0, their positions are the first; ids, of which only the number counts, are
    copies of the first token's: no model takes all of a sample for padding.
    """
    assert x.dtype is not None
    shape = op.Concat(op.Shape(x, start=0, end=1), count, axis=0)
    if x.name == POSITIONS:
        before = op.Expand(op.Cast(op.Range(0, op.Squeeze(count, [0]), 1), to=x.dtype), shape)
        x = op.Add(x, op.Cast(count, to=x.dtype))
    elif x.name in (_MASK, _SEGMENTS):
        before = op.ConstantOfShape(shape, value=ir.tensor([int(x.name == _MASK)], dtype=x.dtype))
    else:
        before = op.Expand(op.Slice(x, [0], [1], [1]), shape)
    return op.Concat(before, x, axis=1)


PROMPT_TUNING: AdapterMethod = Prompt()
