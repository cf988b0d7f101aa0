"""Attention as the graphs have it: Y = softmax(Q·Kᵀ·s + M)·V over heads, and what stands at its places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.frozen import is_frozen
from edgelora_tools.gradients.shapes import dims, rank, shaped
from edgelora_tools.lowering import DOMAIN

_SCALES = ("Mul", "Div")
_MASKS = ("Add", "Where")


@dataclass(frozen=True)
class Attention:
    """The node of P·V, `reader` of the scores, Q·Kᵀ, the scalings of K and of the scores, the heads of K and V.

    Q and V are `[batch, heads, length, size]`. Where several heads of Q share one of K and V, `shared` counts them, and
    `heads` those of K and V.
    """

    node: ir.Node
    reader: ir.Node
    product: ir.Node
    of_keys: tuple[ir.Node, ...]
    of_scores: tuple[ir.Node, ...]
    heads: int
    size: int
    shared: int

    @property
    def scores(self) -> ir.Value:
        value = self.reader.inputs[0]
        assert value is not None
        return value

    @property
    def values(self) -> ir.Value:
        value = self.node.inputs[1]
        assert value is not None
        return value


def find_attentions(model: ir.Model) -> tuple[list[Attention], list[ir.Node]]:
    """Every attention of the main graph, in its order, and the nodes that may be one and have another form."""
    found: list[Attention] = []
    strange: list[ir.Node] = []
    for node in model.graph:
        reader = _reader(node)
        if reader is not None:
            attention = _attention(node, reader)
            if attention is None:
                strange.append(node)
            else:
                found.append(attention)
    return found, strange


def _reader(node: ir.Node) -> ir.Node | None:
    """What takes the scores of a product of probabilities with something that is computed."""
    if (node.domain, node.op_type) == (DOMAIN, "Attend"):
        return node
    p = node.inputs[0] if node.op_type == "MatMul" and node.domain in ("", "ai.onnx") else None
    softmax = None if p is None else p.producer()
    if softmax is None or softmax.op_type != "Softmax" or is_frozen(node.inputs[1]):
        return None
    return softmax


def _attention(node: ir.Node, reader: ir.Node) -> Attention | None:
    scores, values, probabilities = _of_heads(reader.inputs[0]), _of_heads(node.inputs[1]), reader.outputs[-1]
    if scores is None or values is None:
        return None
    if reader is not node and (
        len(probabilities.uses()) != 1
        or probabilities.is_graph_output()
        or reader.attributes.get_int("axis", -1) not in (-1, 3)
    ):
        return None
    of_scores, product = _back(scores, (*_SCALES, *_MASKS))
    if product is None or product.op_type != "MatMul":
        return None
    q, turned = map(_of_heads, product.inputs)
    if q is None or turned is None:
        return None
    of_keys, _ = _back(turned, (*_SCALES, "Transpose"))
    _, heads, size, _ = dims(turned)
    if not isinstance(heads, int) or not isinstance(size, int) or dims(q)[1] != heads or dims(values)[1] != heads:
        return None
    shared = _repeats(of_keys[-1].inputs[0] if of_keys else turned)
    if shared != _repeats(values) or dims(values)[3] != size:
        return None
    scalings = [tuple(n for n in nodes if n.op_type in _SCALES) for nodes in (of_keys, of_scores)]
    return Attention(node, reader, product, scalings[0], scalings[1], heads // shared, size, shared)


def _of_heads(x: ir.Value | None) -> ir.Value | None:
    return x if x is not None and x.shape is not None and rank(x) == 4 else None


def _back(x: ir.Value | None, through: Sequence[str]) -> tuple[list[ir.Node], ir.Node | None]:
    """The nodes of these kinds that `x` has come through, last first, and the one before them."""
    passed: list[ir.Node] = []
    while x is not None and (node := x.producer()) is not None and node.op_type in through:
        came = _came(node, x)
        if came is None:
            break
        passed.append(node)
        x = came
    return passed, None if x is None else x.producer()


def _came(node: ir.Node, y: ir.Value) -> ir.Value | None:
    """The input that a scaling by a number, a mask or a transpose passes on."""
    if node.op_type in _SCALES:
        first, second = node.inputs
        if is_frozen(second) and second is not None and second.shape is not None and rank(second) == 0:
            return first
        is_number = is_frozen(first) and first is not None and first.shape is not None and rank(first) == 0
        return second if is_number and node.op_type == "Mul" else None
    if node.op_type == "Transpose":
        return node.inputs[0]
    like = [x for x in node.inputs if x is not None and x.shape is not None and dims(x) == dims(y)]
    like = [x for x in like if _leads_to_product(x)]
    return like[0] if len(like) == 1 else None


def _leads_to_product(x: ir.Value) -> bool:
    _, node = _back(x, (*_SCALES, *_MASKS))
    return node is not None and node.op_type == "MatMul"


def _repeats(x: ir.Value | None) -> int:
    """How many heads of Q read one of `x`, where its heads have been repeated by an Expand before a Reshape."""
    node = None if x is None else x.producer()
    while node is not None and node.op_type == "Transpose" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    whole = node.inputs[0] if node is not None and node.op_type == "Reshape" else None
    expand = None if whole is None else whole.producer()
    if whole is None or whole.shape is None or expand is None or expand.op_type != "Expand" or rank(whole) != 5:
        return 1
    count = dims(whole)[2]
    return count if isinstance(count, int) else 1


def scaled(op: OpBuilder, x: ir.Value, scalings: Sequence[ir.Node]) -> ir.Value:
    """The same scalings of another value, given last first."""
    for node in reversed(scalings):
        number = next(y for y in node.inputs if y is not None and is_frozen(y))
        x = shaped(op.Mul(x, number) if node.op_type == "Mul" else op.Div(x, number), dims(x), x)
    return x
