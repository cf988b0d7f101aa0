"""Rows of tokens that go on: each row's own sampling, spelling and end; all read by one run a token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from edgelora.language.cache import Cache
from edgelora.language.sampling import Floats, GenerationConfig, Ints, Sampler
from edgelora.language.spelling import Speller
from edgelora.language.stops import StopStrings
from edgelora.manifest import LanguageModel

Pieces = Generator["Piece", None, None]
END, STOP_STRING, LENGTH = "end", "stop_string", "length"

Spell = Callable[[list[int]], str]


@dataclass(frozen=True)
class Piece:
    """What a step adds to a row: its token, and the text that became whole.

    `finish_reason` tells why the row ends with it: "end" (the model's end token, which is in no text), "stop_string"
    or "length"; None: it goes on.
    """

    row: int
    token: int
    text: str
    finish_reason: str | None


@dataclass(frozen=True)
class Generation:
    """A text, its tokens without the end token, why it ended (see `Piece`), and how many tokens its prompt has."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None
    prompt_tokens: int

    def __str__(self) -> str:
        return self.text


class Row:
    """A row that is being generated."""

    def __init__(
        self, number: int, prompt: Ints, config: GenerationConfig, language: LanguageModel, spell: Spell
    ) -> None:
        self.number, self.prompt = number, prompt
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: str | None = None
        self._most, self._ends = config.max_new_tokens, frozenset(language.eos)
        self._sampler = Sampler(config, prompt, language.vocabulary)
        self._speller = Speller(spell, prompt.tolist())
        self._stops = StopStrings(config.stop_strings)

    def add(self, logits: Floats) -> Piece:
        """Choose the next token from its logits `[vocabulary]`."""
        token = self._sampler.choose(logits)
        if token in self._ends:
            self.finish_reason, text = END, ""
        else:
            self.tokens.append(token)
            text = self._stops.feed(self._speller.feed(token))
            if len(self.tokens) == self._most:
                self.finish_reason = LENGTH
        if self.finish_reason is not None:
            text += self._stops.feed(self._speller.end()) + self._stops.end()
        if self._stops.found is not None:
            self.finish_reason = STOP_STRING
        self.text += text
        return Piece(self.number, token, text, self.finish_reason)

    @property
    def generation(self) -> Generation:
        """What there is of the text."""
        return Generation(self.text, tuple(self.tokens), self.finish_reason, len(self.prompt))


def run_rows(cache: Cache, rows: Sequence[Row], tokens: Ints, filled: Ints | None = None) -> Pieces:
    """Read `tokens` (see `Cache.read`) into the rows of the cache, and go on until every row is finished."""
    logits = cache.read(tokens, filled)
    going = list(rows)
    while True:
        for row, scores in zip(going, logits, strict=True):
            yield row.add(scores)
        left = [place for place, row in enumerate(going) if row.finish_reason is None]
        if not left:
            return
        if len(left) < len(going):
            going = [going[place] for place in left]
            cache.keep(left)
        logits = cache.read(np.array([row.tokens[-1:] for row in going], np.int64))


def side_by_side(prompts: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Prompts as rows `[prompts, longest]` that end together, and which of their slots are filled."""
    width = max(map(len, prompts))
    tokens, filled = np.zeros((2, len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        filled[row, width - len(prompt) :] = 1
    return tokens, filled
