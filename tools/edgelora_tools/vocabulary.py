"""From a language model's last hidden state to its logits: what treats every token alone, and no adapter changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.backward import values_read
from edgelora_tools.composites.token_loss import begins_head, token_loss
from edgelora_tools.gradients.bodies import body_input, close_body, copy_nodes, new_body
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.methods.lora import OP_TYPE as LORA
from edgelora_tools.passes.row_wise import ALONG, PRODUCTS, has_rows_of, put_on_rows, row_inputs, viewed
from edgelora_tools.virtual_tokens import VirtualTokens


@dataclass(frozen=True)
class VocabularyHead:
    """The hidden states `[..., width]`, and the nodes from them to the logits: a product, then bias, scale or cap."""

    hidden: ir.Value
    nodes: tuple[ir.Node, ...]

    def behind(self, op: OpBuilder, virtual: VirtualTokens | None) -> VocabularyHead:
        """The head on the caller's own tokens alone."""
        return self if virtual is None else replace(self, hidden=virtual.behind(op, self.hidden))

    def losses(self, op: OpBuilder, rows: ir.Value, labels: ir.Value) -> ir.Value:
        """−log softmax(z)[label] `[rows]` for `rows` `[rows, width]` of hidden states; never all logits at once."""
        inner = new_body(op, "vocabulary")
        x = body_input(inner, rows)
        copies: dict[ir.Value, ir.Value] = {}
        for node in self.nodes:
            source = viewed(node)
            if source is not None:
                copies[node.outputs[0]] = copies.get(source, x)
                continue
            if not copies:
                assert node.inputs[0] is not None
                copies[node.inputs[0]] = x
            (copy,) = copy_nodes(inner, [node], copies)
            copy.outputs[0].shape, copy.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
            put_on_rows(copy, dims(rows)[0] or "?")
        return token_loss(op, rows, labels, close_body(inner, [copies[self.nodes[-1].outputs[0]]]))


def vocabulary_head(logits: ir.Value) -> VocabularyHead | None:
    """The head that makes `logits`; None if an adapter stands in it, or something that mixes tokens or their logits."""
    nodes, y = list[ir.Node](), logits
    while (node := y.producer()) is not None:
        nodes.append(node)
        source = viewed(node)
        if source is None:
            rows = row_inputs(node, partial(_has_rows, node))
            if rows is None or len(rows) != 1 or node.op_type == LORA or node.op_type in ALONG:
                return None
            if not all(_is_frozen(x) for at, x in enumerate(node.inputs) if x is not None and at not in rows):
                return None
            source = node.inputs[rows[0]]
            assert source is not None
            if node.op_type in PRODUCTS:
                return VocabularyHead(_tokens(source), tuple(reversed(nodes))) if begins_head(node) else None
        y = source
    return None


def _has_rows(node: ir.Node, x: ir.Value | None) -> bool:
    return has_rows_of(x, node)


def _tokens(x: ir.Value) -> ir.Value:
    """What `x` is a view of: tokens `[batch, sequence, width]`, where they were counted as rows."""
    while (node := x.producer()) is not None and (source := viewed(node)) is not None:
        x = source
    return x


def _is_frozen(x: ir.Value) -> bool:
    """Whether the value is made of weights and constants alone."""
    node = x.producer()
    return x.is_initializer() if node is None else all(map(_is_frozen, values_read(node)))


def head_weights(model: ir.Model) -> tuple[str, ...]:
    """The names of the matrices that make a language model's logits."""
    heads = (vocabulary_head(y) for y in model.graph.outputs)
    weights = (head.nodes[0].inputs[1] for head in heads if head is not None)
    return tuple(str(weight.name) for weight in weights if weight is not None)
