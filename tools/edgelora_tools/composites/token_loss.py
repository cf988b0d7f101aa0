"""The loss of a language model at every row, in blocks of rows: n_i = −log softmax(f(h_i))[y_i].

f, from a hidden state to logits, is the node's body. The logits of a block are there for a moment, forward and
backward; those of all tokens never are: with a vocabulary of 49,152 they would be the largest tensor of a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools import backward
from edgelora_tools.gradients.bodies import body_input, close_body, new_body, remove_dead_nodes, replay
from edgelora_tools.gradients.nodes import operands, refuse
from edgelora_tools.gradients.registry import Thunks, gradient_rule
from edgelora_tools.gradients.shapes import annotate, dims, shaped
from edgelora_tools.lowering import DOMAIN

OP_TYPE = "TokenLoss"
BLOCK = 64  # rows, at the most: docs/decisions/0038 has the table
BLOCK_ROWS = "block"
"""The number of rows of a block, as a dimension."""


def token_loss(op: OpBuilder, rows: ir.Value, labels: ir.Value, head: ir.Graph) -> ir.Value:
    """n `[rows]` of hidden states `[rows, width]` and labels int64 `[rows]`; `head` makes a block's logits."""
    losses, slopes = op.builder.opset(DOMAIN, 1).TokenLoss(rows, labels, head=head, _outputs=2)
    annotate(slopes, rows)
    return shaped(losses, dims(rows)[:1], rows)


@gradient_rule(OP_TYPE, domain=DOMAIN)
def token_loss_rule(op: OpBuilder, node: ir.Node, dn: ir.Value, dslopes: None = None) -> Thunks:
    """n_i = −log softmax(f(h_i))[y_i], G_i = dn_i/dh_i.

    dh_i = dn_i·G_i

    G is made in the forward pass, while a block's logits are there: two products a block in all, not three.
    """
    h, _ = operands(node)
    slopes = node.outputs[1]
    return (lambda: annotate(op.Mul(op.Unsqueeze(dn, [-1]), slopes), h), None)


class TokenLoss:
    """TokenLoss(H `[rows, width]`, Y int64 `[rows]`) with body `head`; n `[rows]` and G `[rows, width]`."""

    op_type = OP_TYPE

    def lower(self, op: OpBuilder, node: ir.Node) -> Sequence[ir.Value]:
        """A Loop over as few blocks as there can be, all of one size; the last rows of the last may come twice."""
        h, labels = operands(node)
        count = op.Shape(h, start=0, end=1)
        blocks = op.Max(op.Div(op.Add(count, BLOCK - 1), BLOCK), 1)
        size = op.Squeeze(op.Div(op.Add(count, op.Sub(blocks, 1)), blocks), [0])
        last = op.Sub(count, 1)
        inner = new_body(op, "blocks")
        number, condition = (
            body_input(inner, ir.Value(type=ir.TensorType(kind), shape=ir.Shape([])))
            for kind in (ir.DataType.INT64, ir.DataType.BOOL)
        )
        first = inner.Mul(number, size)
        at = inner.Min(inner.Range(first, inner.Add(first, size), 1), last)
        block = shaped(inner.Gather(h, at, axis=0), [BLOCK_ROWS, dims(h)[1]], h)
        made = self._block(inner, node, block, inner.Unsqueeze(inner.Gather(labels, at, axis=0), [-1]))
        body = close_body(inner, [condition, *made])
        remove_dead_nodes(body)
        found = op.Loop(op.Squeeze(blocks, [0]), op.Constant(value=ir.tensor(True)), body=body, _outputs=len(made))
        stacked = [found] if isinstance(found, ir.Value) else list(found)
        flat = [op.Reshape(stacked[0], [-1]), *(op.Reshape(y, [-1, dims(h)[1]]) for y in stacked[1:])]
        results = [op.Slice(y, [0], count, [0]) for y in flat]
        return results if len(results) == 2 else [*results, h]

    def _block(self, op: OpBuilder, node: ir.Node, h: ir.Value, labels: ir.Value) -> list[ir.Value]:
        """n of a block, and, where something reads it, G = f'(h)ᵀ·(p − onehot(y)), p = softmax(z).

        n = log Σ exp(z) − z_y, and the logarithm is max z − log max p: p serves both.
        """
        head = node.attributes["head"].as_graph()
        nodes, copy = replay(op, head, {head.inputs[0]: h})
        z = copy(head.outputs[0])
        p = annotate(op.Softmax(z, axis=-1), z)
        own = op.GatherElements(z, labels, axis=-1)
        top, likeliest = (op.ReduceMax(x, [-1], keepdims=1) for x in (z, p))
        losses = op.Squeeze(op.Sub(op.Sub(top, op.Log(likeliest)), own), [-1])
        if not node.outputs[1].uses():
            return [losses]
        less = op.Sub(op.GatherElements(p, labels, axis=-1), 1.0)
        dz = annotate(op.ScatterElements(p, labels, less, axis=-1), z)
        found = backward.walk_back(op, nodes, {z: dz}, [h])
        if found.blocked:
            raise refuse(node, f"has {'; '.join(map(str, found.blocked.values()))} in its body")
        return [losses, found.of[h]]


TOKEN_LOSS = TokenLoss()
