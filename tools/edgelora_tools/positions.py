"""What numbers the tokens of a text: an input, and the frozen tables of which the token at place j reads row j.

A table's rows may be counted from another first one than 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from edgelora_tools.gradients.shapes import dims
from edgelora_tools.runner import POSITIONS, open_session

_LENGTH, _OTHER, _TOKEN = 5, 2, 3  # sizes to run at; a token that no model takes for padding


@dataclass(frozen=True)
class PositionTable:
    """The Gather that reads the table, and how many tokens have a row."""

    node: ir.Node
    positions: int


def given_positions(model: ir.Model) -> ir.Value | None:
    """The input that numbers the tokens, if the model takes one."""
    return next((x for x in model.graph.inputs if x.name == POSITIONS), None)


def position_tables(model: ir.Model, length: str) -> list[PositionTable]:
    """The tables that are read by position, found by running what numbers the tokens, whose dimension is `length`."""
    found = [
        (str(node.inputs[1].name), node)
        for node in model.graph
        if node.op_type == "Gather"
        and node.inputs[0] is not None
        and node.inputs[0].const_value is not None
        and len(node.inputs[0].const_value.shape) == 2
        and node.inputs[1] is not None
        and (node.inputs[1].producer() is not None or node.inputs[1].name == POSITIONS)
        and node.inputs[1].shape is not None
        and dims(node.inputs[1])[-1:] == (length,)
    ]
    if not found:
        return []
    tables, computed = [], _computed(model, list(dict.fromkeys(name for name, _ in found)), length)
    for name, node in found:
        table, numbers = node.inputs[0], computed[name]
        assert table is not None and table.const_value is not None
        first = int(numbers.flat[0])
        if np.array_equal(numbers, np.broadcast_to(first + np.arange(_LENGTH), numbers.shape)):
            tables.append(PositionTable(node, int(table.const_value.shape.numpy()[0]) - first))
    return tables


def _computed(model: ir.Model, names: list[str], length: str) -> dict[str, np.ndarray]:
    """The values of these names, for samples of one token over and over."""
    part = model.clone()
    feeds = {}
    for x in part.graph.inputs:
        assert x.dtype is not None
        shape = [d if isinstance(d, int) else _LENGTH if d == length else _OTHER for d in dims(x)]
        fill = np.arange(shape[-1]) if x.name == POSITIONS else 1 if "mask" in str(x.name) else _TOKEN
        feeds[str(x.name)] = np.broadcast_to(fill, shape).astype(x.dtype.numpy())
    values = {y.name: y for node in part.graph for y in node.outputs}
    made = [name for name in names if name not in feeds]
    if not made:
        return feeds
    part.graph.outputs[:] = [values[name] for name in made]
    common.RemoveUnusedNodesPass()(part)
    part.graph.inputs[:] = [x for x in part.graph.inputs if x.uses()]
    taken = {str(x.name): feeds[str(x.name)] for x in part.graph.inputs}
    with open_session(part) as session:
        return feeds | dict(zip(made, map(np.asarray, session.run(made, taken)), strict=True))
