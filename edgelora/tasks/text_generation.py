"""A text goes on: a language model learns from texts, conversations, answers, or preferences between answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from edgelora.errors import ConfigError, DataError
from edgelora.language.objective import LanguageModeling
from edgelora.language.packing import packed
from edgelora.language.preferences import DirectPreference
from edgelora.language.prompts import PROMPT_EXAMPLE, Prompt, prompt_of
from edgelora.language.samples import EXAMPLE, LanguageSample, Preference, read_passages, sample_of
from edgelora.language.tokenized import Lengths, rows_of
from edgelora.language.tokens import Tokens
from edgelora.objectives import Array, Feeds, Objective
from edgelora.paths import is_file
from edgelora.records import FORMATS, Record, adapter_field, parse_records, source_name
from edgelora.samples import Named, Sample
from edgelora.tasks.text import TextTask
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs

_TEXT = "txt"
_DPO = "dpo"


class TextGeneration(TextTask):
    """Cross-entropy of the next token, or with "dpo" a preference between two answers.

    Records are TRL's; a file of plain text (.txt) is read as one text. A prediction from texts is the logits of the
    token after each.
    """

    name: ClassVar[str] = "text-generation"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy", _DPO)
    reads_tokens: ClassVar[bool] = True

    # --- data -------------------------------------------------------------------------------------------------

    def sample(self, record: Record, beside: Path) -> LanguageSample:
        return sample_of(record)

    def read(self, path: str | Path, fmt: str | None = None) -> list[Sample]:
        return [line.content for line in self.read_named(path, fmt)]

    def read_named(self, path: str | Path, fmt: str | None = None) -> list[Named[Sample]]:
        name = source_name(path)
        if (fmt or Path(path).suffix.lower().removeprefix(".")) == _TEXT:
            return [Named(passage, None, passage.where) for passage in read_passages(path)]
        if fmt is None and is_file(Path(path)) and Path(path).suffix.lower() not in FORMATS:
            raise DataError(f"{name}: is it plain text, CSV or JSONL? Name it .txt, .csv or .jsonl, or say --format")

        def parse(record: Record) -> tuple[LanguageSample, str | None]:
            return sample_of(record), adapter_field(record)

        found: list[Named[Sample]] = []
        for line, (sample, adapter) in parse_records(path, fmt, parse, (), EXAMPLE):
            where = f"{name}, line {line}"
            found.append(Named(replace(sample, where=where), adapter, where))
        return found

    def read_inputs(self, path: str | Path, fmt: str | None = None) -> list[Named[Any]]:
        """The prompts of `edgelora generate`."""

        def parse(record: Record) -> tuple[Prompt, str | None]:
            return prompt_of(record), adapter_field(record)

        lines = parse_records(path, fmt, parse, (), PROMPT_EXAMPLE)
        return [Named(prompt, adapter, f"{source_name(path)}, line {line}") for line, (prompt, adapter) in lines]

    # --- training ---------------------------------------------------------------------------------------------

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Objective:
        """Of preferences with DPO, which is their only loss; of all else the next token's."""
        tokens, language = tokens_of(model), model.bundle.manifest.language
        assert language is not None, "the model reads tokens"
        lengths = Lengths.of(language.max_length, config.max_length, config.truncate)
        given = [sample for sample in samples if isinstance(sample, LanguageSample)]
        preferences = [sample for sample in given if isinstance(sample, Preference)]
        if preferences and len(preferences) < len(given):
            raise DataError(
                "preferences (prompt, chosen, rejected) and other samples are learned apart: make two files"
            )
        if preferences and config.loss not in (None, _DPO):
            raise ConfigError(f'preferences are learned by the loss "{_DPO}", not {config.loss!r}: leave the loss out')
        if preferences and config.packing:
            raise ConfigError("preferences are not packed: leave packing out")
        if preferences:
            return _preference(model, preferences, tokens, lengths, config.beta)
        if loss == _DPO:
            raise ConfigError('the loss "dpo" learns from samples with prompt, chosen and rejected; these have no such')
        rows = rows_of(given, tokens, lengths)
        if config.packing:
            rows = packed(rows, max(lengths.cut, max((len(row) for row in rows), default=0)))
        return LanguageModeling(rows)

    # --- predictions ------------------------------------------------------------------------------------------

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> dict[str, Array]:
        return model.outputs(inputs, adapter, adapters)

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        raise ConfigError("a language model goes on with texts: use `edgelora generate`, or `edgelora chat`")


def tokens_of(model: Model) -> Tokens:
    """The model's tokenizer.

    Raises:
        ConfigError: it takes no texts.
    """
    if not isinstance(model.encoder, Tokens):
        raise ConfigError("this bundle takes arrays, not text: build an objective from edgelora.language")
    return model.encoder


def _preference(
    model: Model, samples: Sequence[Preference], tokens: Tokens, lengths: Lengths, beta: float
) -> DirectPreference:
    answers: list[LanguageSample] = [answer for sample in samples for answer in sample.answers]
    rows = rows_of(answers, tokens, lengths)
    return DirectPreference(list(zip(rows[::2], rows[1::2], strict=True)), base_losses(model), beta)


def base_losses(model: Model) -> Any:
    """A function from a score graph's inputs to the losses of the base alone."""
    language = model.bundle.manifest.language
    assert language is not None, "the model reads tokens"

    def losses(feeds: Feeds) -> Array:
        return cast(Array, model.bundle.graph(language.score).run({**feeds, **model.base.feeds}, ["nll"])["nll"])

    return losses
