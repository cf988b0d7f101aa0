"""A vector for each text, near those of texts that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgelora.errors import ConfigError, DataError
from edgelora.inputs import TokenInputs
from edgelora.objectives import Array, Pairs
from edgelora.records import Record, text_field
from edgelora.samples import NoLabel, Sample
from edgelora.tasks.text import TextTask, text_encoder
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs


@dataclass(frozen=True)
class PairSample(NoLabel):
    """Texts that belong together, and one that does not."""

    anchor: str
    positive: str
    negative: str | None

    def record(self) -> Any:
        return astuple(self)


class SentenceEmbedding(TextTask):
    """Contrastive or triplet loss of embeddings of length 1, `[rows, features]`."""

    name: ClassVar[str] = "sentence-embedding"
    losses: ClassVar[tuple[str, ...]] = ("contrastive", "triplet")
    fields: ClassVar[tuple[str, ...]] = ("anchor", "positive")

    def sample(self, record: Record, beside: Path) -> PairSample:
        negative = record.get("negative")
        return PairSample(
            text_field(record, "anchor"),
            text_field(record, "positive"),
            None if negative in (None, "") else text_field(record, "negative"),
        )

    def checked(self, path: str | Path, samples: list[Sample]) -> list[Sample]:
        """The samples, all with a negative or none."""
        with_negative = sum(isinstance(s, PairSample) and s.negative is not None for s in samples)
        if with_negative not in (0, len(samples)):
            raise DataError(
                f"{path}: {with_negative} of {len(samples)} samples have a negative: give one in all or in none"
            )
        return samples

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Pairs:
        encoder, pairs = text_encoder(model), [s for s in samples if isinstance(s, PairSample)]
        columns = {"anchor": [s.anchor for s in pairs], "positive": [s.positive for s in pairs]}
        negatives = [s.negative for s in pairs if s.negative is not None]
        if negatives:
            columns["negative"] = negatives
        if loss == "contrastive" and config.micro_batch_size is not None:
            raise ConfigError(
                "micro_batch_size cannot split the contrastive loss, which compares all samples of a batch: make "
                "batch_size smaller, or take the triplet loss"
            )
        if loss == "triplet" and not negatives:
            raise DataError(
                "the triplet loss needs the field 'negative' in every sample; the contrastive loss does not"
            )
        inputs = {name: TokenInputs(encoder, encoder.tokens(texts)) for name, texts in columns.items()}
        return Pairs(inputs, loss, config.temperature, config.margin)

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> Array:
        return model.outputs(inputs, adapter, adapters)["embedding"]
