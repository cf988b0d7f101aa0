"""Points that a missing gradient rule cuts off from the loss, and the way to the operator that does it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgelora.manifest import InsertionPoint, LostPoint
from edgelora_tools.backward import Gradients, MissingRule, values_read


def lost_points(
    base: ir.Graph,
    graph: ir.Graph,
    points: Sequence[InsertionPoint],
    inputs: Sequence[ir.Value],
    gradients: Gradients,
) -> tuple[LostPoint, ...]:
    """The points among `points` whose adapter inputs have lost their gradient, each with its shortest way there.

    `graph` is `base` with adapters in it; the way is told in the nodes of the base.
    """
    lost = {str(x.name).rpartition(".")[0]: x for x in inputs if x in gradients.lost}
    if not lost:
        return ()
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        for x in dict.fromkeys(values_read(node)):
            readers.setdefault(x, []).append(node)
    found, known = [], {node.name for node in base}
    for point in points:
        if point.id in lost:
            way = _way(lost[point.id], gradients.blocked, readers)
            path = tuple(_label(node) for node in way if node.name in known)
            found.append(LostPoint(point.id, str(gradients.blocked[way[-1]]), path))
    return tuple(found)


def _way(
    start: ir.Value, blocked: Mapping[ir.Node, MissingRule], readers: Mapping[ir.Value, Sequence[ir.Node]]
) -> list[ir.Node]:
    """The nodes from the adapter at `start` (itself left out) to the nearest blocked one, by breadth-first search."""
    came_from: dict[ir.Node, ir.Node | None] = dict.fromkeys(readers[start])
    front = deque(came_from)
    while front:
        node = front.popleft()
        if node in blocked:
            way = [node]
            while (before := came_from[way[-1]]) is not None:
                way.append(before)
            return way[::-1]
        for reader in (r for y in node.outputs for r in readers.get(y, ()) if r not in came_from):
            came_from[reader] = node
            front.append(reader)
    raise AssertionError("a value is lost only before a blocked node")


def _label(node: ir.Node) -> str:
    return f"{node.op_type} ({node.name or '?'})"
