"""Text from a language model: prompts, each with its own adapter, become rows of batches."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgelora.active import ActiveAdapter
from edgelora.errors import ConfigError, DataError
from edgelora.language.cache import Cache, bytes_per_token
from edgelora.language.prompts import Prompt, check_prompt, conversation_tokens, text_tokens
from edgelora.language.rows import Generation, Pieces, Row, run_rows, side_by_side
from edgelora.language.sampling import GenerationConfig, Ints
from edgelora.manifest import LORA_GRAPHS, LanguageModel
from edgelora.mixing import Batch, plan_batches
from edgelora.records import first_of
from edgelora.tasks.text_generation import tokens_of

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model

CACHE_MEMORY = 256 << 20
_ROWS = 32  # of one run


@dataclass(frozen=True)
class Run:
    """Texts that are being generated: their rows, in the order of the prompts, and the pieces as they come."""

    rows: Sequence[Row]
    pieces: Pieces

    def finish(self) -> list[Generation]:
        """The texts, once no more comes."""
        for _ in self.pieces:
            pass
        return [row.generation for row in self.rows]


def begin(
    model: Model,
    prompts: Sequence[Prompt],
    adapters: Sequence[AdapterLike],
    config: GenerationConfig,
    cache_memory: int = CACHE_MEMORY,
) -> Run:
    """Check all that can be wrong, and return what generates when its pieces are asked for.

    `adapters` has one for each prompt (None: the base). As many rows run together as `cache_memory` bytes hold.

    Raises:
        ConfigError: the bundle holds no language model, an adapter's method does not generate, the memory is too small
            for one row, or there are not as many adapters as prompts.
        DataError: a prompt that cannot be used. StoreError: no such adapter. AdapterError: it does not fit this base.
    """
    language, spell = language_of(model), tokens_of(model).text
    read = _prompt_tokens(model, prompts, config)
    if len(adapters) != len(read):
        raise ConfigError(f"{len(adapters)} adapters for {len(read)} prompts: one per prompt is needed")
    keys, given = model.keys(adapters)
    for key in dict.fromkeys(keys):
        check_generates(model.keyed(key, given))
    most = rows_within(cache_memory, language, max(map(len, read), default=0) + config.max_new_tokens)
    rows = [Row(number, prompt, config, language, spell) for number, prompt in enumerate(read)]

    def pieces() -> Pieces:
        for batch in plan_batches(keys, most, 0 if language.decode_mixed is None else most):
            yield from _batch(model, rows, batch, {key: model.keyed(key, given) for key in set(batch.keys)})

    return Run(rows, pieces())


def language_of(model: Model) -> LanguageModel:
    """What the bundle tells of its language model.

    Raises:
        ConfigError: it holds none.
    """
    language = model.bundle.manifest.language
    if language is None:
        raise ConfigError(
            f"a bundle for {model.bundle.manifest.task} writes no text: convert a decoder with --task text-generation"
        )
    return language


def most_tokens(language: LanguageModel) -> int:
    """How many tokens of a row the base takes."""
    return language.max_length or sys.maxsize


def _prompt_tokens(model: Model, prompts: Sequence[Prompt], config: GenerationConfig) -> list[Ints]:
    """The tokens of each prompt, to which as many as are asked for can be added.

    Raises:
        DataError: no text nor conversation, an empty one, or one that is too long; all are named.
        ConfigError: the bundle has no chat template, or holds no language model.
    """
    language, tokens = language_of(model), tokens_of(model)
    if isinstance(prompts, str | Mapping):
        raise DataError("prompts are a list, of texts or of conversations: put the one in a list")
    found: list[Ints] = []
    problems: list[str] = []
    for number, prompt in enumerate(prompts, 1):
        where = f"prompt {number}"
        check_prompt(prompt, where)
        try:
            ids = text_tokens(tokens, prompt) if isinstance(prompt, str) else conversation_tokens(tokens, prompt)
        except DataError as error:
            problems.append(f"{where}: {error}")
            continue
        if not len(ids):
            problems.append(f"{where} is empty, and the model has no token to begin a text with")
        if len(ids) + config.max_new_tokens > most_tokens(language):
            problems.append(
                f"{where} has {len(ids):,} tokens, and {config.max_new_tokens:,} new ones (max_new_tokens) would make "
                f"more than the model's {language.max_length:,}: shorten it, or ask for fewer"
            )
        found.append(ids)
    if problems:
        raise DataError(first_of(problems, "prompts that cannot be used"))
    return found


def check_generates(active: ActiveAdapter) -> None:
    """Raise ConfigError unless the decode graph takes the adapter."""
    if active.graphs != LORA_GRAPHS:
        raise ConfigError(
            f"{active.graphs} adapters do not generate: the graph with a cache takes LoRA adapters alone; merge it "
            "into the model (`edgelora export`)"
        )


def rows_within(memory: int, language: LanguageModel, tokens: int) -> int:
    """How many rows of so many tokens have their keys and values in this memory, at most as many as a run takes.

    Raises:
        ConfigError: not one has.
    """
    row = tokens * bytes_per_token(language)
    if row > memory:
        raise ConfigError(
            f"the keys and values of {tokens} tokens take {row / 1e6:.1f} MB, and cache_memory is {memory / 1e6:.1f}: "
            "allow more, or ask for fewer tokens"
        )
    return min(_ROWS, memory // max(row, 1))


def _batch(model: Model, rows: Sequence[Row], batch: Batch, active: Mapping[Hashable, ActiveAdapter]) -> Pieces:
    """The pieces of these rows: of one run, or of one for each adapter where the stack cannot hold all of them."""
    language = language_of(model)
    if batch.is_mixed and language.decode_mixed is not None:
        with model.stack.loaded(batch.keys, active) as stacked:
            if stacked is not None:
                cache = Cache(model.bundle.graph(language.decode_mixed), stacked, len(batch.rows))
                yield from _from_prompts(cache, [rows[number] for number in batch.rows])
                return
    for alone in plan_batches(batch.keys, len(batch.rows), 0):
        cache = Cache(model.bundle.graph(language.decode), active[alone.keys[0]].feeds, len(alone.rows))
        yield from _from_prompts(cache, [rows[batch.rows[place]] for place in alone.rows])


def _from_prompts(cache: Cache, rows: Sequence[Row]) -> Pieces:
    return run_rows(cache, rows, *side_by_side([row.prompt for row in rows]))
