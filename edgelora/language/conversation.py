"""A conversation that keeps what the model has read: a turn begins by reading the new words alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgelora.active import ActiveAdapter
from edgelora.errors import DataError
from edgelora.language.cache import Cache, bytes_per_token
from edgelora.language.generation import CACHE_MEMORY, language_of, most_tokens
from edgelora.language.prompts import conversation_tokens
from edgelora.language.rows import Generation, Pieces, Row, run_rows
from edgelora.language.samples import Message
from edgelora.language.sampling import GenerationConfig, Ints
from edgelora.language.writers import virtual_tokens, writer_of
from edgelora.tasks.text_generation import tokens_of

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model


class Chat:
    """A conversation with a model, `adapter` being the one that answers next, and `config` how.

    Keys and values stay from turn to turn as long as the adapter's values stay: another adapter, or another version of
    it, reads the conversation anew. Where it grows beyond what the model or `cache_memory` bytes hold, the oldest turns
    are forgotten; `forgotten` counts their messages. `read` is how many tokens the last turn had to read. For one
    thread at a time.
    """

    def __init__(
        self,
        model: Model,
        adapter: AdapterLike = None,
        system: str | None = None,
        config: GenerationConfig | None = None,
        cache_memory: int = CACHE_MEMORY,
    ) -> None:
        """`system` is the message that every conversation begins with.

        Raises:
            ConfigError: the bundle generates no text, has no chat template, or no graph with a cache for the adapter's
                method.
            StoreError: no such adapter. AdapterError: it does not fit this base.
        """
        language = language_of(model)
        self._model, self._language, self._tokens = model, language, tokens_of(model)
        limits = {"the model takes": most_tokens(language)}
        limits["cache_memory holds"] = cache_memory // bytes_per_token(language)
        self._limit, self._most = min(limits.items(), key=lambda limit: limit[1])
        self.config = config or GenerationConfig()
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[Message] = []
        self.forgotten = self.read = 0
        self._known: _Known | None = None
        self.use(adapter)
        self._fitted([{"role": "user", "content": ""}])

    def use(self, adapter: AdapterLike) -> None:
        """Let this adapter answer from now on.

        Raises:
            ConfigError: the bundle has no graph with a cache for it. StoreError: no such adapter. AdapterError: it does
                not fit.
        """
        self._before = virtual_tokens(self._model, self._language, self._model.activate(adapter))
        self.adapter = adapter

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages, self.forgotten, self._known = [], 0, None

    def ask(self, text: str) -> Generation:
        """The answer. Raises as `stream` does."""
        row, pieces = self._turn(text)
        for _ in pieces:
            pass
        return row.generation

    def stream(self, text: str) -> Pieces:
        """The answer as it comes; what has come when the iterator is closed stays the answer.

        Raises:
            DataError: the text and `max_new_tokens` are more than there is room for, or the template refuses it.
            ConfigError: the bundle has no graph with a cache for the adapter. StoreError: no such adapter.
            AdapterError: it does not fit this base.
        """
        return self._turn(text)[1]

    def _turn(self, text: str) -> tuple[Row, Pieces]:
        active = self._model.activate(self.adapter)
        self._before = virtual_tokens(self._model, self._language, active)
        messages, prompt = self._fitted([*self.messages, {"role": "user", "content": text}])
        row = Row(0, prompt, self.config, self._language, self._tokens.text)
        return row, self._answer(messages, active, row)

    def _fitted(self, messages: Sequence[Message]) -> tuple[list[Message], Ints]:
        """The messages, without the oldest turns where all are too many, and their tokens."""
        kept, most = list(messages), self._most - self._before
        room = most - self.config.max_new_tokens
        while len(tokens := conversation_tokens(self._tokens, [*self._system, *kept])) > room:
            turn = next((i for i, message in enumerate(kept) if i and message["role"] == "user"), None)
            if turn is None:
                raise DataError(
                    f"this turn has {len(tokens):,} tokens with all that goes with it, and "
                    f"{self.config.max_new_tokens:,} new ones (max_new_tokens) would make more than the {most:,} that "
                    f"{self._limit}: shorten it, or ask for fewer"
                )
            kept = kept[turn:]
        return kept, tokens

    def _answer(self, messages: list[Message], active: ActiveAdapter, row: Row) -> Pieces:
        owner = _fingerprint(active)
        known, self._known = self._known, None
        if known is None or known.owner != owner:
            cache = writer_of(self._model, self._language, active).cache(self._model, 1)
            known = _Known(owner, cache, row.prompt[:0])
        shared = min(_common(known.tokens, row.prompt), len(row.prompt) - 1)
        cache = known.cache
        if shared < cache.slots:
            cache.cut(shared)
        self.read = len(row.prompt) - shared
        try:
            yield from run_rows(cache, [row], row.prompt[None, shared:])
        finally:
            if row.text or row.finish_reason is not None:
                self.forgotten += len(self.messages) + 1 - len(messages)
                self.messages = [*messages, {"role": "assistant", "content": row.text}]
            tokens = np.concatenate([row.prompt, np.array(row.tokens, np.int64)])
            self._known = _Known(owner, cache, tokens[: cache.slots])


@dataclass(frozen=True)
class _Known:
    """A cache, the tokens that it holds, and the values of the adapter that they were read with."""

    owner: bytes
    cache: Cache
    tokens: Ints


def _common(one: Ints, other: Ints) -> int:
    """How many tokens two texts begin with in common."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size


def _fingerprint(active: ActiveAdapter) -> bytes:
    """What tells the values of an adapter from all others: one in memory may have changed since it was last used."""
    made = hashlib.blake2b()
    for name, array in sorted(active.feeds.items()):
        made.update(f"{name} {array.shape} ".encode())
        made.update(np.ascontiguousarray(array).data if array.size else b"")
    return made.digest()
