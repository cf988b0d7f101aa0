"""From the base's outputs to what a task needs: pooled features, a new head's logits, an embedding.

The head belongs to the adapter (`modules_to_save` in PEFT's terms): its weight `[outputs, features]` and
bias `[outputs]` are graph inputs, so that the classes are named when training begins, on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora.manifest import Head
from edgelora_tools.gradients.shapes import dims, rank
from edgelora_tools.map_heads import MAP_HEADS, map_logits
from edgelora_tools.passes.value_sizes import VIEWS
from edgelora_tools.passes.without_cache import PRESENT
from edgelora_tools.virtual_tokens import VirtualTokens
from edgelora_tools.vocabulary import VocabularyHead, vocabulary_head

POOLINGS = ("mean", "cls", "pooler", "flatten")
TASKS = (
    "sequence-classification",
    "token-classification",
    "regression",
    "sentence-embedding",
    "feature-extraction",
    *MAP_HEADS,
    "image-classification",
    "audio-classification",
    "speaker-verification",
    "text-generation",
)
HEAD_NAME = {
    "sequence-classification": "classifier",
    "token-classification": "classifier",
    "regression": "regressor",
    "image-classification": "classifier",
    "audio-classification": "classifier",
}
_KEEP_SHARES = VIEWS | {"Transpose", "Cast", "QuantizeLinear", "DequantizeLinear"}
VECTORS = ("image-classification", "audio-classification", "speaker-verification")  # mean takes pooled features too


@dataclass(frozen=True)
class TaskOutput:
    """What a task's graph returns: `outputs` by name, the head if there is one, logits or embedding.

    `vocabulary` makes a language model's logits, if it can be computed in blocks.
    """

    outputs: dict[str, ir.Value]
    head: Head | None
    prediction: ir.Value | None
    vocabulary: VocabularyHead | None = None


def attach_task(
    op: OpBuilder,
    graph: ir.Graph,
    task: str,
    pooling: str,
    source_output: str | None,
    virtual: VirtualTokens | None = None,
) -> TaskOutput:
    """Extend the base's graph by the task's head. What it returns per token, it returns of the caller's tokens.

    Raises:
        ConversionError: unknown task or pooling, or the source has no output that the pooling reads.
    """
    if task not in TASKS:
        raise ConversionError(f"unknown task {task!r}; one of {', '.join(TASKS)}")
    if task == "feature-extraction":
        chosen = [_named_output(graph, source_output)] if source_output else list(graph.outputs)
        return TaskOutput({str(v.name): v if virtual is None else virtual.behind(op, v) for v in chosen}, None, None)
    if task == "text-generation":
        logits = _output_of_rank(graph, (3,), source_output, "text generation")
        vocabulary = vocabulary_head(logits)
        vocabulary = None if vocabulary is None else vocabulary.behind(op, virtual)
        logits = logits if virtual is None else virtual.behind(op, logits)
        cache = {str(v.name): v for v in graph.outputs if str(v.name).startswith(PRESENT)}
        return TaskOutput({"logits": logits, **cache}, None, logits, vocabulary)
    if task == "token-classification":
        hidden = _output_of_rank(graph, (3,), source_output, "token classification")
        hidden = hidden if virtual is None else virtual.behind(op, hidden)
        logits, head = _logits(op, hidden, HEAD_NAME[task], "token")
        return TaskOutput({"logits": logits}, head, logits)
    if task in MAP_HEADS:
        logits, head = map_logits(op, graph, _output_of_rank(graph, (4,), source_output, task), task)
        return TaskOutput({"logits": logits}, head, logits)
    features = pool(op, graph, pooling, source_output, virtual, vectors=task in VECTORS)
    if task in ("sentence-embedding", "speaker-verification"):
        embedding = op.LpNormalization(features, axis=-1, p=2)
        embedding.shape, embedding.type = features.shape, features.type
        return TaskOutput({"embedding": embedding}, None, embedding)
    logits, head = _logits(op, features, HEAD_NAME[task], "sequence")
    return TaskOutput({"logits": logits}, head, logits)


def pool(
    op: OpBuilder,
    graph: ir.Graph,
    pooling: str,
    source_output: str | None,
    virtual: VirtualTokens | None = None,
    vectors: bool = False,
) -> ir.Value:
    """One feature vector per sample, `[batch, features]`.

    mean: over the tokens that `attention_mask` keeps (Sentence-BERT, arXiv:1908.10084), or over the places of a map
    `[batch, features, h, w]`; cls: the first token's; pooler: the source's own pooled output, as mean takes it too with
    `vectors`; flatten: all of it in a row. Virtual tokens are tokens to them, as in PEFT.
    """
    if pooling not in POOLINGS:
        raise ConversionError(f"unknown pooling {pooling!r}; one of {', '.join(POOLINGS)}")
    if pooling == "pooler":
        return _output_of_rank(graph, (2,), source_output, "pooling 'pooler'")
    if pooling == "flatten":
        return _flat(op, graph, source_output)
    ranks = (3,) if pooling == "cls" else (3, 4, 2) if vectors else (3, 4)
    hidden = _output_of_rank(graph, ranks, source_output, f"pooling {pooling!r}")
    if pooling == "cls":
        return op.Gather(hidden, op.Constant(value_int=0), axis=1)
    if rank(hidden) == 2:
        return hidden
    if rank(hidden) == 4:
        return op.ReduceMean(hidden, [2, 3], keepdims=0)
    own = next((x for x in graph.inputs if x.name == "attention_mask"), None)
    mask = own if virtual is None else virtual.mask
    if mask is None:
        return op.ReduceMean(hidden, [1], keepdims=0)
    weight = op.Unsqueeze(op.Cast(mask, to=ir.DataType.FLOAT), [-1])
    total = op.ReduceSum(op.Mul(hidden, weight), [1], keepdims=0)
    return op.Div(total, op.Max(op.ReduceSum(weight, [1], keepdims=0), 1e-9))


def _flat(op: OpBuilder, graph: ir.Graph, source_output: str | None) -> ir.Value:
    """All of a sample's features `[batch, …]` in a row; all sizes but the batch's must be fixed."""
    values = [_named_output(graph, source_output)] if source_output else list(graph.outputs)
    for value in values:
        sizes = [] if value.shape is None else list(dims(value))[1:]
        fixed = [size for size in sizes if isinstance(size, int)]
        if fixed and len(fixed) == len(sizes) and (value.dtype is None or value.dtype.is_floating_point()):
            flat = op.Reshape(value, [-1, math.prod(fixed)])
            flat.shape, flat.type = ir.Shape([dims(value)[0], math.prod(fixed)]), value.type
            return flat
    listed = ", ".join(f"{v.name} {v.shape}" for v in values)
    raise ConversionError(f"pooling 'flatten' needs a floating-point output of fixed sizes; the source has {listed}")


def _logits(op: OpBuilder, features: ir.Value, name: str, per: str) -> tuple[ir.Value, Head]:
    size = dims(features)[-1]
    if not isinstance(size, int):
        raise ConversionError(f"the width of {features.name!r} is dynamic: a head needs a fixed number of features")
    head = Head(name, size, per)
    weight = op.builder.input(head.weight, ir.DataType.FLOAT, ["outputs", size])
    bias = op.builder.input(head.bias, ir.DataType.FLOAT, ["outputs"])
    if per == "sequence":
        return op.Gemm(features, weight, bias, transB=1), head
    rows = op.Gemm(op.Flatten(features, axis=-1), weight, bias, transB=1)
    leading = op.Shape(features, start=0, end=-1)
    logits = op.Reshape(rows, op.Concat(leading, op.Shape(bias), axis=0), allowzero=1)
    assert features.shape is not None
    logits.shape = ir.Shape([*features.shape[:-1], "outputs"])
    return logits, head


def reads_shares(graph: ir.Graph) -> bool:
    """Whether a value that a task reads is a softmax's: near its ends little of what a network knows is left."""
    return any(_is_share(y) for y in graph.outputs)


def _is_share(y: ir.Value) -> bool:
    node = y.producer()
    while node is not None and node.op_type in _KEEP_SHARES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Softmax"


def _named_output(graph: ir.Graph, name: str) -> ir.Value:
    for value in graph.outputs:
        if value.name == name:
            return value
    raise ConversionError(f"the source has no output {name!r}; it has {', '.join(str(v.name) for v in graph.outputs)}")


def _output_of_rank(graph: ir.Graph, wanted: tuple[int, ...], name: str | None, what: str) -> ir.Value:
    """The named output, or the first that is floating-point and of the first of these ranks that there is."""
    ranks = " or ".join(map(str, wanted))
    if name is not None:
        value = _named_output(graph, name)
        if value.shape is None or rank(value) not in wanted:
            raise ConversionError(f"{what} needs an output of rank {ranks}; {name!r} has shape {value.shape}")
        return value
    for one in wanted:
        for value in graph.outputs:
            floating = value.dtype is not None and value.dtype.is_floating_point()
            if floating and value.shape is not None and rank(value) == one:
                return value
    listed = ", ".join(f"{v.name} {v.shape}" for v in graph.outputs)
    raise ConversionError(f"{what} needs a floating-point output of rank {ranks}; the source has {listed}")
