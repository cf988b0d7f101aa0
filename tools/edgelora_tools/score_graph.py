"""The graph that scores text: −log of the probability of every token that is asked for, with an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import InsertionPoint
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.shapes import dims, indicator, shaped
from edgelora_tools.graphs import LOWERED, adapt, set_outputs
from edgelora_tools.heads import TaskOutput
from edgelora_tools.losses import READ, token_losses
from edgelora_tools.lowering import lower_nodes
from edgelora_tools.methods import LORA, AdapterMethod
from edgelora_tools.options import ConvertOptions
from edgelora_tools.passes.add_in_product import add_in_product, of_adapters
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.rows import padded_of, places_of
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.training_graphs import only_what_is_read


def score_graph(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    options: ConvertOptions,
    unpadded: bool,
    method: AdapterMethod = LORA,
) -> ir.Model:
    """`nll` float32 `[batch, sequence]` for a base that returns logits.

    A further input `labels` int64 `[batch, sequence]` has the token that comes next; where it is negative, nothing is
    asked and `nll` is 0.
    """
    adapted = adapt(base, points, options, method, dropout=False)
    graph = adapted.model.graph
    scores = _scores(adapted.op, adapted.task)
    (scores,) = only_what_is_read(adapted.model, options, [scores], unpadded, joined=False)
    adapted = replace(adapted, op=GraphBuilder(free_names(graph)).op)
    set_outputs(adapted, {"nll": scores})
    lower_nodes(graph, adapted.op, LOWERED)
    add_in_product(adapted.model, of_adapters)
    return tidy(adapted.model)


def _scores(op: OpBuilder, task: TaskOutput) -> ir.Value:
    """−log softmax(z)[label] where the label is not negative, else 0."""
    assert task.prediction is not None
    tokens = dims(task.prediction)[:2]
    labels = op.builder.input("labels", ir.DataType.INT64, list(tokens))
    asked = op.GreaterOrEqual(labels, 0)
    at = places_of(op, asked, tokens, READ)
    losses = token_losses(op, task, at, op.Max(op.Gather(op.Reshape(labels, [-1]), at.kept, axis=0), 0))
    column = shaped(op.Unsqueeze(losses, [-1]), [READ, 1], losses)
    whole = padded_of(op, column, at, tokens)
    return shaped(op.Mul(op.Squeeze(whole, [-1]), indicator(op, asked, losses)), tokens, losses)
