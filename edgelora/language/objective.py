"""Learning to continue text: the loss of each token that counts, and what it says about text that was held out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.language.packing import Row, RowInputs
from edgelora.manifest import LORA_GRAPHS, Manifest
from edgelora.objectives import Array, Feeds, Judge, OnSamples, first_output
from edgelora.reference_losses import log_softmax

Rows = NDArray[np.int64]


class LanguageModeling(OnSamples):
    """Cross-entropy of the next token, where it counts; a batch is of rows, and each of its tokens counts the same.

    Metrics: `loss` in nats a token, `perplexity` = exp(loss), and `bits_per_byte` of the text that they stand for.
    """

    loss, metric, higher_is_better = "cross-entropy", "loss", False

    def __init__(self, rows: Sequence[Row], padding: int = 0) -> None:
        self.data = self._rows = RowInputs(rows, padding)
        self._tokens = np.asarray([np.count_nonzero(row.counted) for row in rows], np.int64)

    def weight(self, rows: Rows) -> float:
        return float(self._tokens[rows].sum()) or 1.0

    def inputs(self, rows: Rows) -> Feeds:
        return {**self._rows.feeds(rows), "labels": self._rows.labels(rows)}

    def loss_inputs(self, rows: Rows, total: float) -> Feeds:
        labels = np.maximum(self._rows.labels(rows), 0)
        return {"labels": labels, "loss_weight": self._rows.counted(rows) / np.float32(total)}

    def judge(self, manifest: Manifest, graphs: str) -> Judge:
        return token_judge(manifest, graphs)

    def measured(self, outputs: Array, rows: Rows) -> Array:
        """For each row the sum of the losses, the tokens that count, and the bytes that they stand for."""
        losses = counted_losses(outputs, self._rows, rows).sum(1)
        told = [row.bytes for row in self._rows.chosen(rows)]
        return np.stack([losses, self._tokens[rows], np.asarray(told, np.float64)], axis=1)

    def metrics(self, outputs: Sequence[Array], rows: Sequence[Rows]) -> dict[str, float]:
        nats, tokens, told = np.concatenate(outputs).astype(np.float64).sum(0).tolist()
        loss = nats / tokens
        found = {"loss": loss, "perplexity": float(np.exp(loss))}
        return found | ({"bits_per_byte": nats / math.log(2) / told} if told else {})


def token_judge(manifest: Manifest, graphs: str) -> Judge:
    """The loss of every token, whose graph never holds all logits at once; these, where adapters have no such graph."""
    if manifest.language is None:
        return first_output(manifest)
    found = manifest.methods.get(graphs)
    score = manifest.language.score if graphs == LORA_GRAPHS else None if found is None else found.score
    return first_output(manifest) if score is None else Judge(score, ("nll",))


def counted_losses(outputs: Array, data: RowInputs, rows: Rows) -> NDArray[np.float64]:
    """−log p of each label that counts, 0 elsewhere, `[rows, longest]`, from these or from logits `[…, vocabulary]`."""
    counted = data.counted(rows) > 0
    made = np.zeros(counted.shape)
    if outputs.ndim == 2:
        made[counted] = outputs[counted]
        return made
    for row, (labels, here) in enumerate(zip(data.labels(rows), counted, strict=True)):  # not all as float64 at once
        found = log_softmax(outputs[row, here].astype(np.float64))
        made[row, here] = -np.take_along_axis(found, labels[here, None], 1)[:, 0]
    return made
