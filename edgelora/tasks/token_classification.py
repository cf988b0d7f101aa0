"""A label for each word of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import DataError
from edgelora.inputs import TokenInputs
from edgelora.objectives import TokenClassification as TokenObjective
from edgelora.objectives import balanced_weights
from edgelora.records import Record, texts_field
from edgelora.samples import Sample, label_index
from edgelora.tasks.classes import named_classes
from edgelora.tasks.text import TextTask, text_encoder
from edgelora.text import IGNORED, TextEncoder
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


@dataclass(frozen=True)
class TokenSample:
    """Words and a label for each."""

    words: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def stratum(self) -> str:
        return ""

    def record(self) -> Any:
        return astuple(self)


class TokenClassification(TextTask):
    """Cross-entropy of a label per word, at its first token.

    A text is split at white space, unless it is given as a list of words; a word beyond the longest input has no label
    (None).
    """

    name: ClassVar[str] = "token-classification"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)
    fields: ClassVar[tuple[str, ...]] = ("tokens", "labels")
    has_classes: ClassVar[bool] = True

    def sample(self, record: Record, beside: Path) -> TokenSample:
        words, labels = texts_field(record, "tokens"), texts_field(record, "labels")
        if len(words) != len(labels):
            raise ValueError(f"{len(words)} tokens and {len(labels)} labels: one label per token is expected")
        return TokenSample(words, labels)

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> TokenObjective:
        encoder, tagged = text_encoder(model), [s for s in samples if isinstance(s, TokenSample)]
        index = label_index(tagged, labels)
        ids, firsts = encoder.words([s.words for s in tagged])
        y: list[NDArray[np.int64]] = []
        for sample, first in zip(tagged, firsts, strict=True):
            known = np.asarray([index[label] for label in sample.labels], np.int64)
            y.append(np.where(first == IGNORED, IGNORED, known[np.maximum(first, 0)]))
        weights = None
        if config.class_weight:
            flat = np.concatenate(y)
            weights = balanced_weights(flat[flat != IGNORED], len(index))
        return TokenObjective(TokenInputs(encoder, ids), y, weights)

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[Any]:
        """The label of each word: that of its first token, as in training. From arrays that of every position."""
        if isinstance(inputs, Mapping):
            return named_classes(*model.answer(inputs, adapter, adapters))
        if not isinstance(model.encoder, TextEncoder) or isinstance(inputs, str):
            model.inputs(inputs)  # says what is wrong
            return []
        samples = [_words(text) for text in inputs]
        ids, firsts = model.encoder.words(samples)
        outputs, names = model.answer(TokenInputs(model.encoder, ids), adapter, adapters)
        labelled: list[list[str | int | None]] = []
        for sample, first, best, own in zip(samples, firsts, outputs["logits"].argmax(-1), names, strict=True):
            labels: list[str | int | None] = [None] * len(sample)
            for place in np.flatnonzero(first != IGNORED).tolist():
                label = int(best[place])
                labels[int(first[place])] = label if own is None else own[label]
            labelled.append(labels)
        return labelled

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        predicted = self.predict(model, inputs, adapter, adapters)
        return [{"text": t, "tokens": t.split(), "labels": p} for t, p in zip(inputs, predicted, strict=True)]


def _words(text: Any) -> list[str]:
    words: Any = text.split() if isinstance(text, str) else text
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in cast("list[Any]", words)):
        raise DataError(f"token classification takes texts or lists of words; {text!r} is neither")
    return list(cast("list[str]", words))
