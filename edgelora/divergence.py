"""How far a quantized language model's answers are from its source's: Kullback-Leibler divergences, in nats a token.

Where activations are rounded, no bound on every logit of every token tells a right model from a wrong one: a token that
has all but the norm of an attention sink becomes one, or does not, by a weight's last digits, and so does its row's end
(docs/decisions/0046). So the text that the source wrote at conversion is asked, the mean over nearly all of its tokens,
and of random tokens the median: a broken graph errs at most of either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.gradient_checks import rounds_activations
from edgelora.graph_checks import GraphVerdict
from edgelora.language_checks import decoded_logits, tokens_of
from edgelora.manifest import LanguageModel
from edgelora.probes import Feeds
from edgelora.slopes import LARGEST, bounded

MOST_NATS = {"int8": 0.03, "int4": 0.06}
ALIKE = 0.02  # nats between two graphs of the same codes
_ON_EDGE = 48  # one token of so many may stand on an edge

Sample = tuple[Feeds, Mapping[str, NDArray[Any]]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """In nats a token: `written`, the mean over the source's text but for the farthest of 48; `drawn`, the median of
    random tokens; `worst`, of all tokens of the text; `most`, what the first two may be."""

    written: float
    drawn: float
    worst: float
    tokens: int
    most: float
    passed: bool


def check_divergence(bundle: Bundle, written: Sample, drawn: Sequence[Sample]) -> Divergence:
    """The verdict on the inference graph without adapter, on the source's text and on random tokens."""
    most = MOST_NATS[bundle.manifest.source["precision"]]
    of_text = divergences(bundle, written)
    of_drawn = np.concatenate([divergences(bundle, sample) for sample in drawn])
    mean = bounded(float(np.sort(of_text)[: len(of_text) - len(of_text) // _ON_EDGE].mean()))
    median, worst = bounded(float(np.median(of_drawn))), bounded(float(of_text.max()))
    return Divergence(mean, median, worst, len(of_text), most, max(mean, median) <= most)


def divergences(bundle: Bundle, sample: Sample) -> Floats:
    """Of every token, Σ p·(log p − log q) with the source's p and the bundle's q."""
    inputs, source = sample
    ours = bundle.forward.run({**inputs, **absent_adapter(bundle.manifest)})["logits"]
    wanted = source["logits"]
    if ours.shape != wanted.shape:
        return np.full(wanted.shape[:-1], LARGEST).ravel()
    rows = zip(wanted.reshape(-1, wanted.shape[-1]), ours.reshape(-1, ours.shape[-1]), strict=True)
    return np.nan_to_num(np.array([_divergence(p, q) for p, q in rows]), nan=LARGEST, posinf=LARGEST)


def check_alike(bundle: Bundle, language: LanguageModel, inputs: Feeds) -> list[GraphVerdict]:
    """`decode` and `score` without adapter against the inference graph: what a text's next tokens cost, on the mean.

    They hold the same codes: rounding excuses little here.
    """
    ids, adapter = inputs["input_ids"], absent_adapter(bundle.manifest)
    whole, labels = tokens_of(ids, 0, ids.shape[1]), np.roll(ids, -1, axis=1)
    wanted = _costs(bundle.forward.run({**whole, **adapter})["logits"], labels)
    made = decoded_logits(bundle, language, language.decode, ids, adapter)
    decoded = None if made is None else _costs(made, labels)
    scored = bundle.graph(language.score).run({**whole, **adapter, "labels": labels})["nll"]
    return [_alike(file, got, wanted) for file, got in ((language.decode, decoded), (language.score, scored))]


def is_asked(bundle: Bundle) -> bool:
    """Whether answers, and not logits, decide: of a language model whose activations are rounded."""
    return bundle.manifest.language is not None and rounds_activations(bundle)


def _alike(file: str, got: NDArray[Any] | None, wanted: Floats) -> GraphVerdict:
    if got is None or got.shape != wanted.shape:
        return GraphVerdict(file, LARGEST, ALIKE, "shape", False)
    gap = bounded(float(np.abs(got.astype(np.float64) - wanted).mean()))
    return GraphVerdict(file, gap, ALIKE, "nats a token", gap <= ALIKE)


def _costs(logits: NDArray[Any], labels: NDArray[np.int64]) -> Floats:
    rows = zip(logits.reshape(-1, logits.shape[-1]), labels.ravel(), strict=True)
    return -np.array([_log_softmax(z)[label] for z, label in rows]).reshape(labels.shape)


def _divergence(p: NDArray[Any], q: NDArray[Any]) -> float:
    wanted = _log_softmax(p)
    return float(np.exp(wanted) @ (wanted - _log_softmax(q)))


def _log_softmax(z: NDArray[Any]) -> Floats:
    x = z.astype(np.float64) - float(z.max())
    return x - np.log(np.exp(x).sum())
