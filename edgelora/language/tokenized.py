"""What is learned of each sample: its tokens, and which of them count. Nothing is cut unless that is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgelora.errors import ConfigError, DataError
from edgelora.language.packing import Bools, Row, row_of
from edgelora.language.samples import Answer, Conversation, LanguageSample, Message, Passage
from edgelora.language.tokens import Encoded, Tokens
from edgelora.records import first_of

CUT = 256  # tokens of a row of plain text where no other number is asked for


@dataclass(frozen=True)
class Lengths:
    """How many tokens a row has at most: `most` of a sample, `cut` of plain text; with `truncate` samples are cut."""

    most: int
    cut: int
    truncate: bool = False

    @classmethod
    def of(cls, model: int, asked: int | None, truncate: bool = False) -> Lengths:
        """Those for a model of so many positions (0: any): `asked`, or what it takes, and of plain text `CUT`.

        Raises:
            ConfigError: more is asked for than the model has.
        """
        most = model or sys.maxsize
        if asked is not None and asked > most:
            raise ConfigError(f"max_length {asked:,} is more than this model takes, {model:,} tokens")
        return cls(asked or most, asked or min(CUT, most), truncate)


@dataclass(frozen=True)
class Tokenized:
    """A sample's tokens, and which of them are learned, `[tokens]`. `where` names it in messages."""

    encoded: Encoded
    counted: Bools
    where: str

    def __len__(self) -> int:
        return len(self.encoded)

    def row(self, start: int = 0, size: int | None = None) -> Row:
        """The row of `size` tokens from `start` on (all that something follows), each with the one after it."""
        stop = min(start + (size or len(self)), len(self) - 1)
        after = slice(start + 1, stop + 1)
        counted = self.counted[after]
        told = int(self.encoded.bytes[after][counted].sum())
        return row_of(self.encoded.ids[start:stop], self.encoded.ids[after], counted, told)


def rows_of(samples: Sequence[LanguageSample], tokens: Tokens, lengths: Lengths) -> list[Row]:
    """The rows of these samples, in their order: one of each, but of plain text as many as it fills.

    Passages of one text that follow each other are read as one. Every token of a text but its first is learned once.

    Raises:
        DataError: samples that are too long, or of which nothing is learned; the first ones are named.
        ConfigError: messages, and a base without a chat template.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for run in _runs(samples):
        first = run[0]
        try:
            if isinstance(first, Passage):
                rows += _text_rows([one for one in run if isinstance(one, Passage)], tokens, lengths.cut)
            else:
                rows.append(fitted(tokenized(first, tokens), lengths).row())
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(first_of(problems, "samples"))
    return rows


def fitted(sample: Tokenized, lengths: Lengths) -> Tokenized:
    """The sample, if a row has room for it; with `truncate` as much of its beginning as that.

    Raises:
        DataError: it is too long, or nothing is left to learn.
    """
    count = len(sample)
    if count > lengths.most and not lengths.truncate:
        raise DataError(
            f"{sample.where}: {count:,} tokens, and a row has room for {lengths.most:,}: shorten it, raise max_length "
            "(--max-length) as far as the model goes, or have its end cut off (--truncate)"
        )
    kept = slice(lengths.most)
    made = Tokenized(sample.encoded.part(kept), sample.counted[kept], sample.where)
    if not made.counted[1:].any():
        left = f" in its first {lengths.most:,} tokens" if count > lengths.most else ""
        raise DataError(f"{sample.where}: there is nothing to learn{left}: no token of an answer follows another")
    return made


def tokenized(sample: LanguageSample, tokens: Tokens) -> Tokenized:
    """The tokens of a conversation, or of an answer.

    Raises:
        DataError: the chat template refuses it. ConfigError: messages, and a base without a chat template.
    """
    try:
        if isinstance(sample, Conversation):
            return _conversation(sample, tokens)
        if isinstance(sample, Answer):
            return _answer(sample, tokens)
    except DataError as error:
        raise DataError(f"{sample.where}: {error}") from error
    raise ConfigError(f"{sample.where}: {type(sample).__name__.lower()} samples are learned by another loss")


def _conversation(sample: Conversation, tokens: Tokens) -> Tokenized:
    """The assistant's answers count, with what ends each. A token counts that stands in one with any of its text."""
    text, spans = tokens.template.answers(sample.messages)
    encoded = tokens.encode(text, special=False)
    counted = np.zeros(len(encoded), np.bool_)
    for start, end in spans:
        counted |= (encoded.ends > start) & (encoded.starts < end)
    return Tokenized(encoded, counted, sample.where)


def _answer(sample: Answer, tokens: Tokens) -> Tokenized:
    """The completion counts, and the end of text after it.

    The prompt has the tokens that it has alone, as where a model is asked: where those of both together begin with
    others, as after a prompt that ends with a space, the completion has its own.
    """
    prompt, completion, special = _written(sample, tokens)
    alone, both = tokens.encode(prompt, special), tokens.encode(prompt + completion, special)
    size = len(alone)
    if not np.array_equal(both.ids[:size], alone.ids):
        both = alone + tokens.going_on(completion)
    if special or not np.isin(both.ids[size:], tokens.eos).any():  # messages end as their template ends them
        both = tokens.ended(both)
    return Tokenized(both, np.arange(len(both)) >= size, sample.where)


def _written(sample: Answer, tokens: Tokens) -> tuple[str, str, bool]:
    """Prompt and completion as text, and whether the tokenizer is to put special tokens around them."""
    prompt, completion = sample.prompt, sample.completion
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion, True
    before, after = _messages(prompt), _messages(completion)
    template = tokens.template
    asked, whole = template.render(before, add_generation_prompt=True), template.render([*before, *after])
    if not whole.startswith(asked):
        raise DataError(
            "the chat template writes the prompt otherwise once the completion follows: give both as texts, written as "
            "the model reads them"
        )
    return asked, whole[len(asked) :], False


def _messages(turns: str | tuple[Message, ...]) -> tuple[Message, ...]:
    assert not isinstance(turns, str), "a sample's fields are of one kind"
    return turns


def _runs(samples: Sequence[LanguageSample]) -> Iterator[list[LanguageSample]]:
    """The samples, those together that follow each other in one text."""
    run = list(samples[:1])
    for before, sample in pairwise(samples):
        follows = (
            isinstance(before, Passage)
            and isinstance(sample, Passage)
            and before.part is not None
            and not before.end
            and sample.part == before.part + 1
        )
        if not follows:
            yield run
            run = []
        run.append(sample)
    if run:
        yield run


def _text_rows(run: Sequence[Passage], tokens: Tokens, cut: int) -> list[Row]:
    """The rows of a text or of a stretch of one, which has its special tokens where it begins and where it ends.

    None of the end of a text whose beginning is elsewhere, if it is one token: nothing tells what comes before it.
    """
    first, last = run[0], run[-1]
    encoded = tokens.encode("".join(passage.text for passage in run), special=not first.part)
    if last.end:
        encoded = tokens.ended(encoded)
    if len(encoded) < 2 and first.part:
        return []
    if len(encoded) < 2:
        raise DataError(f"{first.where}: there is nothing to learn: it has no two tokens; leave it out")
    counted = np.ones(len(encoded), np.bool_)
    whole = Tokenized(encoded, counted, first.where)
    return [whole.row(start, cut) for start in range(0, len(encoded) - 1, cut)]
