"""Losses: small graphs appended at conversion, scalar, with the weight of every row an input.

`loss_weight` carries class weights, masks of padding and the mean over the effective batch at once:
the host feeds w_i = c(y_i)/Σ c, so accumulation over micro-batches is exact and no flag is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.manifest import TensorSpec
from edgelora_tools.gradients.shapes import dims, shaped
from edgelora_tools.heads import TaskOutput
from edgelora_tools.passes.rows import Places, places_of, rows_of

Seeds = dict[ir.Value, ir.Value]
READ = "read"
"""The number of tokens that a loss reads, as a dimension."""
LossBuilder = Callable[[OpBuilder, TaskOutput], ir.Value | Seeds]


@dataclass(frozen=True)
class Loss:
    """A loss by name; `build` adds its inputs and returns the scalar, or the outputs' cotangents."""

    name: str
    build: LossBuilder


def _prediction(task: TaskOutput) -> ir.Value:
    assert task.prediction is not None
    return task.prediction


def _leading(value: ir.Value) -> list[int | str | None]:
    return list(dims(value)[:-1])


def cross_entropy(op: OpBuilder, task: TaskOutput) -> ir.Value:
    """L = Σ w_i·(−log softmax(z_i)[y_i]); labels int64 and loss_weight float32 `[batch]`."""
    logits = _prediction(task)
    labels = op.builder.input("labels", ir.DataType.INT64, _leading(logits))
    weight = op.builder.input("loss_weight", ir.DataType.FLOAT, _leading(logits))
    return op.ReduceSum(op.Mul(weight, _losses(op, logits, labels)), keepdims=0)


def _losses(op: OpBuilder, logits: ir.Value, labels: ir.Value) -> ir.Value:
    """−log softmax(z)[label] of every row."""
    chosen = op.GatherElements(op.LogSoftmax(logits, axis=-1), op.Unsqueeze(labels, [-1]), axis=-1)
    return shaped(op.Neg(op.Squeeze(chosen, [-1])), _leading(logits), logits)


def token_cross_entropy(op: OpBuilder, task: TaskOutput) -> ir.Value:
    """L = Σ w_i·n_i, n_i = −log softmax(z_i)[y_i]; labels int64 and loss_weight float32 `[batch, length]`.

    Tokens with w_i = 0 are not read. w is the cotangent of n: a loss of the probabilities of whole texts, as that of
    preferences, trains by weights. Where text is generated, y_i is the token that comes next.
    """
    tokens = _leading(_prediction(task))
    labels = op.builder.input("labels", ir.DataType.INT64, tokens)
    weight = op.builder.input("loss_weight", ir.DataType.FLOAT, tokens)
    at = places_of(op, op.Not(op.Equal(weight, 0.0)), tokens, READ)
    labels, weight = (op.Gather(op.Reshape(x, [-1]), at.kept, axis=0) for x in (labels, weight))
    return op.ReduceSum(op.Mul(weight, token_losses(op, task, at, labels)), keepdims=0)


def token_losses(op: OpBuilder, task: TaskOutput, at: Places, labels: ir.Value) -> ir.Value:
    """−log softmax(z)[label] `[rows]` at these places, from the logits of a block of the vocabulary at a time.

    Not so where an adapter stands between the last hidden state and the logits: its gradient is of all rows.
    """
    if task.vocabulary is not None:
        return task.vocabulary.losses(op, rows_of(op, task.vocabulary.hidden, at), labels)
    return _losses(op, rows_of(op, _prediction(task), at), labels)


def mean_squared_error(op: OpBuilder, task: TaskOutput) -> ir.Value:
    """L = Σ_i w_i·mean_j (z_ij − t_ij)²; targets float32 `[batch, outputs]`, loss_weight `[batch]`."""
    z = _prediction(task)
    targets = op.builder.input("targets", ir.DataType.FLOAT, list(dims(z)))
    weight = op.builder.input("loss_weight", ir.DataType.FLOAT, _leading(z))
    error = op.Sub(z, targets)
    return op.ReduceSum(op.Mul(weight, op.ReduceMean(op.Mul(error, error), [-1], keepdims=0)), keepdims=0)


def cross_entropy_dice(op: OpBuilder, task: TaskOutput) -> ir.Value:
    """L = Σ_n w_n·(−log p_n[y_n]) + Σ_i v_i·(1 − mean_c D_ic), p = softmax(z): per pixel n, and per picture i.

    D_ic = (2·Σ_n m_n·p_nc·t_nc + 1)/(Σ_n m_n·(p_nc + t_nc) + 1) is the Dice coefficient of class c, smoothed by a
    pixel, with t = onehot(y) and m_n = [w_n > 0]: pixels without a weight are not seen (V-Net, arXiv:1606.04797). z is
    `[batch, outputs, h, w]`; labels int64 and loss_weight float32 `[batch, h, w]`, dice_weight v float32 `[batch]`.
    """
    z = _prediction(task)
    batch, _, *places = dims(z)
    labels = op.builder.input("labels", ir.DataType.INT64, [batch, *places])
    weight = op.builder.input("loss_weight", ir.DataType.FLOAT, [batch, *places])
    dice_weight = op.builder.input("dice_weight", ir.DataType.FLOAT, [batch])
    truth = op.OneHot(labels, op.Shape(z, start=1, end=2), [0.0, 1.0], axis=1)
    truth.shape, truth.type = z.shape, z.type
    log_p = op.LogSoftmax(z, axis=1)
    nll = op.Neg(op.ReduceSum(op.Mul(truth, log_p), [1], keepdims=0))
    seen = op.Unsqueeze(op.Cast(op.Greater(weight, 0.0), to=ir.DataType.FLOAT), [1])
    p, t = op.Mul(op.Exp(log_p), seen), op.Mul(truth, seen)
    overlap = op.Mul(op.ReduceSum(op.Mul(p, t), [2, 3], keepdims=0), 2.0)
    dice = op.Div(op.Add(overlap, 1.0), op.Add(op.ReduceSum(op.Add(p, t), [2, 3], keepdims=0), 1.0))
    missing = op.Sub(1.0, op.ReduceMean(dice, [1], keepdims=0))
    return op.Add(op.ReduceSum(op.Mul(weight, nll), keepdims=0), op.ReduceSum(op.Mul(dice_weight, missing), keepdims=0))


def heatmap(op: OpBuilder, task: TaskOutput) -> ir.Value:
    """L = Σ_ik w_ik·(−Σ_n q_ikn·log softmax_n(z_ikn)): where point k of picture i is, the map's places as classes.

    z and q are `[batch, outputs, h, w]`, q ("targets") a distribution over the places, such as a Gaussian around the
    point (float32); loss_weight `[batch, outputs]` is 0 for a point that is not seen.
    """
    z = _prediction(task)
    targets = op.builder.input("targets", ir.DataType.FLOAT, list(dims(z)))
    weight = op.builder.input("loss_weight", ir.DataType.FLOAT, list(dims(z)[:2]))
    log_p = op.LogSoftmax(op.Flatten(op.Reshape(z, [0, 0, -1]), axis=-1), axis=-1)
    nll = op.Neg(op.ReduceSum(op.Mul(op.Flatten(op.Reshape(targets, [0, 0, -1]), axis=-1), log_p), [1], keepdims=0))
    return op.ReduceSum(op.Mul(op.Reshape(weight, [-1]), nll), keepdims=0)


def contrastive(op: OpBuilder, task: TaskOutput) -> ir.Value:
    """L = Σ_k w_k·(−log softmax_j(<e_a, e_j>/τ + m_kj)[p_k]), a = anchor_k, p = positive_k (InfoNCE).

    Inputs: `anchors`, `positives` int64 `[pairs]` (rows of the batch), `bias_mask` float32 `[pairs,
    batch]` (0, or a large negative number where row j is no candidate for pair k), `loss_weight`
    `[pairs]`, `inverse_temperature` `[]`. Multiple-negatives ranking masks all but the positives;
    NT-Xent masks the anchor itself (van den Oord et al. 2018, arXiv:1807.03748).
    """
    e = _prediction(task)
    batch = dims(e)[0]
    anchors = op.builder.input("anchors", ir.DataType.INT64, ["pairs"])
    positives = op.builder.input("positives", ir.DataType.INT64, ["pairs"])
    mask = op.builder.input("bias_mask", ir.DataType.FLOAT, ["pairs", batch])
    weight = op.builder.input("loss_weight", ir.DataType.FLOAT, ["pairs"])
    sharpness = op.builder.input("inverse_temperature", ir.DataType.FLOAT, [])
    similarity = op.MatMul(op.Gather(e, anchors, axis=0), op.Transpose(e, perm=[1, 0]))
    log_p = op.LogSoftmax(op.Add(op.Mul(similarity, sharpness), mask), axis=-1)
    chosen = op.GatherElements(log_p, op.Unsqueeze(positives, [-1]), axis=-1)
    return op.ReduceSum(op.Mul(weight, op.Neg(op.Squeeze(chosen, [-1]))), keepdims=0)


def triplet(op: OpBuilder, task: TaskOutput) -> ir.Value:
    """L = Σ_k w_k·max(0, |e_a − e_p| − |e_a − e_n| + margin) (FaceNet, arXiv:1503.03832; Euclidean).

    Inputs: `anchors`, `positives`, `negatives` int64 `[pairs]`, `margin` float32 `[]`, `loss_weight` `[pairs]`.
    """
    e = _prediction(task)
    rows = {n: op.builder.input(n, ir.DataType.INT64, ["pairs"]) for n in ("anchors", "positives", "negatives")}
    weight = op.builder.input("loss_weight", ir.DataType.FLOAT, ["pairs"])
    margin = op.builder.input("margin", ir.DataType.FLOAT, [])
    anchor, positive, negative = (op.Gather(e, index, axis=0) for index in rows.values())

    def distance(other: ir.Value) -> ir.Value:
        gap = op.Sub(anchor, other)
        return op.Sqrt(op.Add(op.ReduceSum(op.Mul(gap, gap), [-1], keepdims=0), 1e-12))

    hinge = op.Relu(op.Add(op.Sub(distance(positive), distance(negative)), margin))
    return op.ReduceSum(op.Mul(weight, hinge), keepdims=0)


def cotangent(op: OpBuilder, task: TaskOutput) -> Seeds:
    """No loss: the caller feeds c = dL/d(output) for any L that the host can differentiate (edgelora.OwnLoss).

    Of a head's logits per token, those with c = 0 are not read.
    """
    seeds = {
        output: op.builder.input(f"cotangent.{name}", ir.DataType.FLOAT, list(dims(output)))
        for name, output in task.outputs.items()
        if output.dtype is None or output.dtype.is_floating_point()
    }
    if task.head is None or task.head.per != "token":
        return seeds
    ((logits, c),) = seeds.items()
    read = op.Not(op.Equal(op.ReduceSum(op.Abs(c), [-1], keepdims=0), 0.0))
    at = places_of(op, read, dims(c)[:2], READ)
    dz = op.Gather(op.Flatten(c, axis=-1), at.kept, axis=0)
    dz.name = f"{c.name}.{READ}"
    dz.shape, dz.type = ir.Shape([READ, dims(c)[-1]]), c.type
    return {rows_of(op, logits, at): dz}


COTANGENT = Loss("cotangent", cotangent)
LOSSES: dict[str, tuple[Loss, ...]] = {
    "sequence-classification": (Loss("cross-entropy", cross_entropy), COTANGENT),
    "token-classification": (Loss("cross-entropy", token_cross_entropy), COTANGENT),
    "regression": (Loss("mse", mean_squared_error), COTANGENT),
    "sentence-embedding": (Loss("contrastive", contrastive), Loss("triplet", triplet), COTANGENT),
    "feature-extraction": (COTANGENT,),
    "object-detection": (COTANGENT,),
    "semantic-segmentation": (Loss("cross-entropy-dice", cross_entropy_dice), COTANGENT),
    "keypoint-detection": (Loss("heatmap", heatmap), COTANGENT),
    "image-classification": (Loss("cross-entropy", cross_entropy), COTANGENT),
    "audio-classification": (Loss("cross-entropy", cross_entropy), COTANGENT),
    "speaker-verification": (Loss("contrastive", contrastive), COTANGENT),
    "text-generation": (Loss("cross-entropy", token_cross_entropy),),
}


def loss_inputs(graph: ir.Graph, known: set[str]) -> tuple[TensorSpec, ...]:
    """The inputs that a training graph takes beside those named in `known`."""
    specs = []
    for value in graph.inputs:
        if value.name not in known:
            assert value.name is not None and value.dtype is not None
            shape = tuple(d if d is not None else "?" for d in dims(value))
            specs.append(TensorSpec(value.name, value.dtype.numpy().name, shape))
    return tuple(specs)
