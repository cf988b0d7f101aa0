"""A walk through a vocabulary, block by block of its tokens, over the constants that a head reads of each of them.

Blocks that divide the vocabulary evenly, of constants whose first axis is the tokens', are views of these: a Scan hands
them out, and nothing is copied. Other blocks are cut out of them in a Loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.bodies import body_input, close_body, new_body, remove_dead_nodes, scan
from edgelora_tools.gradients.shapes import dims, shaped

COLUMNS = "columns"
"""The number of tokens in a block that is cut out, as a dimension."""
_UNEVEN = 2  # times as large, or as small, as asked for is an even block at the most


class Block(NamedTuple):
    """Tokens from `first` up to before `behind`, int64 `[]`, and their parts of the constants."""

    first: ir.Value
    behind: ir.Value
    parts: Mapping[ir.Value, ir.Value]


Step = Callable[[OpBuilder, Block, Sequence[ir.Value]], Sequence[ir.Value]]
"""From a block and the states before it to those behind it."""


def walk(
    op: OpBuilder, columns: int, most: int, axes: Mapping[ir.Value, int], states: Sequence[ir.Value], step: Step
) -> Sequence[ir.Value]:
    """The states behind all blocks of `columns` tokens, about `most` in each; `axes` has each constant's tokens' axis.

    The first state must have a size that the graph alone does not tell.
    """
    even = even_size(columns, most)
    if even is None or any(axes.values()):
        return _over_cuts(op, columns, most, axes, states, step)
    return _over_views(op, columns, even, list(axes), states, step)


def even_size(columns: int, most: int) -> int | None:
    """The size, nearest to `most`, of blocks that divide the vocabulary evenly; None if there is none that is near."""
    near = range(max(1, most // _UNEVEN), min(columns, most * _UNEVEN) + 1)
    return min((size for size in near if not columns % size), key=lambda size: abs(size - most), default=None)


def _over_views(
    op: OpBuilder, columns: int, size: int, constants: Sequence[ir.Value], states: Sequence[ir.Value], step: Step
) -> Sequence[ir.Value]:
    """By a Scan over the constants, seen as blocks: a shape that a runtime knows would make it copy them beforehand."""
    unknown = op.Slice(op.Shape(states[0]), [0], [0])
    views = [_as_blocks(op, x, columns // size, size, unknown) for x in constants]
    count = len(states)

    def one(inner: OpBuilder, first: ir.Value, *values: ir.Value) -> Sequence[ir.Value]:
        behind = inner.Add(first, size)
        parts = dict(zip(constants, values[count:], strict=True))
        return [behind, *step(inner, Block(first, behind, parts), values[:count])]

    begin = op.Constant(value=ir.tensor(0))
    end, *made = scan(op, one, [begin, *states], views)
    node = end.producer()
    assert node is not None
    remove_dead_nodes(node.attributes["body"].as_graph())
    return made


def _as_blocks(op: OpBuilder, x: ir.Value, blocks: int, size: int, unknown: ir.Value) -> ir.Value:
    sizes = [blocks, size, *(int(str(d)) for d in dims(x)[1:])]
    return shaped(op.Reshape(x, op.Concat(sizes, unknown, axis=0)), sizes, x)


def _over_cuts(
    op: OpBuilder, columns: int, most: int, axes: Mapping[ir.Value, int], states: Sequence[ir.Value], step: Step
) -> Sequence[ir.Value]:
    """By a Loop over as few blocks as there can be, as even as can be, the last of which may be smaller."""
    blocks = -(-columns // most)
    size = -(-columns // blocks)
    inner = new_body(op, "vocabulary")
    number, condition = (
        body_input(inner, ir.Value(type=ir.TensorType(kind), shape=ir.Shape([])))
        for kind in (ir.DataType.INT64, ir.DataType.BOOL)
    )
    kept = [body_input(inner, x) for x in states]
    first = inner.Mul(number, size)
    behind = inner.Min(inner.Add(first, size), columns)
    ends = inner.Unsqueeze(first, [0]), inner.Unsqueeze(behind, [0])
    parts = {x: _cut(inner, x, ends, axis) for x, axis in axes.items()}
    body = close_body(inner, [condition, *step(inner, Block(first, behind, parts), kept)])
    remove_dead_nodes(body)
    count, always = op.Constant(value=ir.tensor(blocks)), op.Constant(value=ir.tensor(True))
    made = op.Loop(count, always, *states, body=body, _outputs=len(states))
    return [made] if isinstance(made, ir.Value) else made


def _cut(op: OpBuilder, x: ir.Value, ends: tuple[ir.Value, ir.Value], axis: int) -> ir.Value:
    sizes = list(dims(x))
    sizes[axis] = COLUMNS
    return shaped(op.Slice(x, *ends, [axis]), sizes, x)
