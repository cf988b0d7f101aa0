"""Causal attention is computed in blocks of queries, without most of the scores that its mask hides anyway.

Only where the graph proves it: what is added to the scores is a number of float32's least where a key comes behind the
query, and the other reasons to hide a key never hide the query's own, so that no row of scores is hidden whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites.causal_attend import causal_attend, halves_widths, in_halves, keys_of, queries
from edgelora_tools.gradients.nodes import ints_of, operands
from edgelora_tools.gradients.shapes import dims, known_equal, rank, shaped, size_of, transpose_last
from edgelora_tools.lowering import DOMAIN, emit_before
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.matching import both_orders, in_order, made_by, number_of
from edgelora_tools.passes.shared_heads import of_repeated, turned_back

SHORT = 256
"""Tokens of a text to which two blocks in halves are faster than four."""
_LEAST = float(np.finfo(np.float32).min)


def causal_blocks(model: ir.Model, blocks: int | None = None, length: int = 0) -> ir.Model:
    """Rewrite every Attend whose mask is proven to be causal, in place; shapes must be known (measure_shapes.py).

    In so many blocks, or as many as are best for texts of this length.
    """
    graph = model.graph
    op = GraphBuilder(free_names(graph)).op
    made: dict[tuple[object, ...], _Shared] = {}
    for node in list(graph):
        found = _found(node) if (node.domain, node.op_type) == (DOMAIN, "Attend") else None
        if found is None:
            continue
        key = found.mask, dims(found.q)[:2], dims(found.k)[1], dims(found.q)[3], dims(found.v)[3]
        if key not in made:
            count = blocks or _best_count(found, length)
            made[key] = emit_before(graph, node, lambda found=found, count=count: _shared(op, found, count))
        emit_before(graph, node, lambda node=node, found=found, key=key: _replace(op, node, found, made[key]))
        graph.remove(node, safe=True)
    return model


@dataclass(frozen=True)
class _Causal:
    """softmax(scale·Q·Kᵀ + mask)·V; K as `[batch, heads, length, width]`, or `turned` as a product wants it."""

    q: ir.Value
    k: ir.Value
    turned: bool
    v: ir.Value
    scale: ir.Value | None
    mask: ir.Value


@dataclass(frozen=True)
class _Shared:
    """What all layers with one mask and heads alike share: the sizes of blocks, and what each block has."""

    sizes: ir.Value
    blocks: Sequence[tuple[ir.Value, ...]]


def _best_count(found: _Causal, length: int) -> int:
    """Fewer are more of the square in fewer nodes; blocks in halves have more of these (docs/decisions/0051)."""
    return 2 if in_halves(dims(found.q)[1], dims(found.k)[1]) and length <= SHORT else 4


def _found(node: ir.Node) -> _Causal | None:
    scores, v = operands(node)
    probabilities = node.outputs[1]
    if len(scores.uses()) > 1 or probabilities.uses() or probabilities.is_graph_output() or v.shape is None:
        return None
    for product, mask in both_orders(scores, "Add"):
        scale = None
        if made_by(product, "Mul"):
            scaled = [(x, c) for x, c in both_orders(product, "Mul") if number_of(c) is not None]
            product, scale = scaled[0] if scaled else (product, None)
        for q, turned in in_order(product, "MatMul"):
            if any(x.shape is None or rank(x) != 4 for x in (q, turned, mask)):
                continue
            batch, heads, length, width = dims(q)
            square = known_equal(dims(turned), [batch, heads, width, length]) and known_equal(
                dims(v)[:3], [batch, heads, length]
            )
            fits = dims(mask)[0] in (1, batch) and known_equal(dims(mask)[1:], [1, length, length])
            if not (square and fits and isinstance(heads, int) and isinstance(width, int) and _is_causal(mask)):
                continue
            k = turned_back(turned)
            found = _Causal(q, turned if k is None else k, k is None, v, scale, mask)
            return _with_fewer_heads(found)
    return None


def _with_fewer_heads(found: _Causal) -> _Causal:
    """K and V before they are repeated for the heads of queries that share them, where both are."""
    k, v = (of_repeated(x) for x in (found.k, found.v))
    if found.turned or k is None or v is None or dims(k)[1] != dims(v)[1]:
        return found
    return _Causal(found.q, k, False, v, found.scale, found.mask)


def _is_causal(mask: ir.Value) -> bool:
    """Whether it is a number of float32's least, or below, where a key is hidden, and keys behind the query are."""
    unsqueezed = made_by(mask, "Unsqueeze")
    inner = None if unsqueezed is None else unsqueezed.inputs[0]
    if unsqueezed is None or inner is None or ints_of(unsqueezed.inputs[1]) != [1]:
        return False
    for hidden, least in both_orders(inner, "Mul"):
        number, cast = number_of(least), made_by(hidden, "Cast")
        if number is not None and -np.inf < number <= _LEAST and cast is not None:
            reasons = _reasons(operands(cast)[0])
            behind = [_is_behind(x) for x in reasons]
            return any(behind) and all(b or _spares_itself(x) for b, x in zip(behind, reasons, strict=True))
    return False


def _reasons(hidden: ir.Value) -> list[ir.Value]:
    """What any of which hides a key."""
    found = in_order(hidden, "Or")
    return [x for part in found[0] for x in _reasons(part)] if found else [hidden]


def _is_behind(x: ir.Value) -> bool:
    """Whether it is: the key's slot is behind the query's, `[length, length]` of one range of slots."""
    pairs = [*in_order(x, "Greater"), *((b, a) for a, b in in_order(x, "Less"))]
    return any(_is_range(key) and _standing(query) is key for key, query in pairs)


def _spares_itself(x: ir.Value) -> bool:
    """Whether it holds for no key at the query's own slot: another segment, or one too far before it."""
    for (same,) in in_order(x, "Not"):
        for a, b in both_orders(same, "Equal"):
            if _lying(a) is not None and _lying(a) is _column(b):
                return True
    for key, bound in in_order(x, "LessOrEqual"):
        for query, window in in_order(bound, "Sub"):
            size = number_of(window)
            if _is_range(key) and _standing(query) is key and size is not None and size > 0:
                return True
    return False


def _is_range(x: ir.Value) -> bool:
    return made_by(x, "Range") is not None


def _standing(x: ir.Value) -> ir.Value | None:
    """V of V `[length, 1]`."""
    return _opened(x, 1, -1)


def _lying(x: ir.Value) -> ir.Value | None:
    """M of M `[batch, 1, length]`."""
    return _opened(x, 1, -2)


def _column(x: ir.Value) -> ir.Value | None:
    """M of M `[batch, length, 1]`."""
    return _opened(x, 2, -1)


def _opened(x: ir.Value, *axes: int) -> ir.Value | None:
    """What `x` is with one axis more, any of these: one axis by its two numbers."""
    node = made_by(x, "Unsqueeze")
    return node.inputs[0] if node is not None and ints_of(node.inputs[1]) in [[axis] for axis in axes] else None


def _shared(op: OpBuilder, found: _Causal, count: int) -> _Shared:
    """Blocks of one size, but that the first may be smaller and, in a short text, some of them empty.

    They are empty at the beginning: an empty block reads no key then, and no product has an inner axis of none.
    """
    length, batch = size_of(op, found.q, 2), size_of(op, found.q, 0)
    heads, fewer = (int(str(dims(x)[1])) for x in (found.q, found.k))
    many, halved = heads // fewer, in_halves(heads, fewer)
    unit = 2 if halved and many % 2 else 1
    size = op.Div(op.Add(length, count * unit - 1), count * unit)
    size = size if unit == 1 else op.Mul(size, unit)
    behind = op.Mul(size, op.Constant(value=ir.tensor(np.arange(count - 1, -1, -1))))
    all_ends = op.Max(op.Sub(length, behind), op.Constant(value=ir.tensor(np.zeros(count, np.int64))))
    ends = [op.Slice(all_ends, [i], [i + 1], [0]) for i in range(count)]
    starts = [op.Constant(value_ints=[0]), *ends[:-1]]
    sizes = op.Sub(all_ends, op.Concat(*starts, axis=0))
    blocks = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        mask = op.Slice(found.mask, op.Concat(start, [0], axis=0), op.Concat(end, end, axis=0), [2, 3])
        shaped(mask, [dims(found.mask)[0], 1, queries(i), keys_of(i)], found.mask)
        each = op.Sub(end, start)
        by_head = op.Concat(batch, [heads], each, end, axis=0)
        rows = [op.Mul(each, many)]
        if halved:
            halves = _halves(op, batch, rows[0], many)
            rows = [halves, op.Div(rows[0], halves)]
        by_key = op.Concat(batch, [fewer], *rows, end, axis=0)
        shapes = [
            op.Concat(batch, [fewer], *rows, [width], axis=0) for width in halves_widths(found.q, found.k, found.v)
        ]
        blocks.append((end, mask, by_head, by_key, *shapes))
    return _Shared(sizes, blocks)


def _halves(op: OpBuilder, batch: ir.Value, rows: ir.Value, many: int) -> ir.Value:
    """2 where the products of a block are odd in number and their rows are not, else 1."""
    odd = batch if many % 2 == 0 else op.Mul(batch, op.Add(rows, 1))
    return op.Add(op.Mod(odd, 2), 1)


def _replace(op: OpBuilder, node: ir.Node, found: _Causal, shared: _Shared) -> None:
    k = transpose_last(op, found.k) if found.turned else found.k
    if found.turned:
        batch, heads, width, length = dims(found.k)
        shaped(k, [batch, heads, length, width], found.k)
    safe = bool(node.attributes.get_int("safe", 1))
    made = causal_attend(found.q, k, found.v, found.scale, shared.sizes, shared.blocks, safe)
    old, new = node.outputs[0], made.outputs[0]
    new.shape, new.type, new.name = old.shape, old.type, old.name
    for i, y in enumerate(made.outputs[1:]):
        y.name = f"{old.name}.part{i}"
    old.name = None
    op.builder.graph.append(made)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
