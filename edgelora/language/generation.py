"""Text from a language model: prompts, each with its own adapter, become rows of batches."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgelora.active import ActiveAdapter
from edgelora.errors import ConfigError, DataError
from edgelora.language.cache import Cache, bytes_per_token
from edgelora.language.prompts import Prompt, check_prompt, conversation_tokens, text_tokens
from edgelora.language.rows import Generation, Pieces, Row, run_rows, side_by_side
from edgelora.language.sampling import GenerationConfig, Ints
from edgelora.language.writers import virtual_tokens, writer_of
from edgelora.manifest import LORA_GRAPHS, LanguageModel
from edgelora.mixing import plan_batches
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
        ConfigError: the bundle holds no language model, or no graph with a cache for an adapter's method, the memory is
            too small for one row, or there are not as many adapters as prompts.
        DataError: a prompt that cannot be used. StoreError: no such adapter. AdapterError: it does not fit this base.
    """
    language, spell = language_of(model), tokens_of(model).text
    if len(adapters) != len(prompts):
        raise ConfigError(f"{len(adapters)} adapters for {len(prompts)} prompts: one per prompt is needed")
    keys, given = model.keys(adapters)
    kinds = {key: _kind(model, language, model.keyed(key, given)) for key in dict.fromkeys(keys)}
    before = [kinds[key][1] for key in keys]
    read = _prompt_tokens(model, prompts, config, before)
    longest = max((len(ids) + count for ids, count in zip(read, before, strict=True)), default=0)
    most = rows_within(cache_memory, language, longest + config.max_new_tokens)
    rows = [Row(number, prompt, config, language, spell) for number, prompt in enumerate(read)]
    mixed = [number for number, key in enumerate(keys) if language.decode_mixed and kinds[key][0] == LORA_GRAPHS]
    apart = [number for number in range(len(rows)) if number not in set(mixed)]

    def pieces() -> Pieces:
        for numbers, alone in ((mixed, most), (apart, 0)):
            # rows whose prompts end together have empty slots, which would stand between these and virtual tokens
            alike = [(keys[number], len(read[number]) if before[number] else 0) for number in numbers]
            for batch in plan_batches(alike, most, alone):
                own = [keys[numbers[place]] for place in batch.rows]
                active = {key: model.keyed(key, given) for key in set(own)}
                yield from _batch(model, [rows[numbers[place]] for place in batch.rows], own, active)

    return Run(rows, pieces())


def _kind(model: Model, language: LanguageModel, active: ActiveAdapter) -> tuple[str, int]:
    """The set of graphs of an adapter, and how many tokens of its own it puts before a text."""
    return active.graphs, virtual_tokens(model, language, active)


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


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Raise DataError unless this is a list."""
    given: Any = prompts
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise DataError(
            f"prompts are a list, of texts or of conversations: put the one in a list; {given!r:.60} is none"
        )


def _prompt_tokens(
    model: Model, prompts: Sequence[Prompt], config: GenerationConfig, before: Sequence[int]
) -> list[Ints]:
    """The tokens of each prompt, to which as many as are asked for can be added, `before` each so many virtual ones.

    Raises:
        DataError: no text nor conversation, an empty one, or one that is too long; all are named.
        ConfigError: the bundle has no chat template, or holds no language model.
    """
    language, tokens = language_of(model), tokens_of(model)
    found: list[Ints] = []
    problems: list[str] = []
    for number, (prompt, virtual) in enumerate(zip(prompts, before, strict=True), 1):
        where = f"prompt {number}"
        check_prompt(prompt, where)
        try:
            ids = text_tokens(tokens, prompt) if isinstance(prompt, str) else conversation_tokens(tokens, prompt)
        except DataError as error:
            problems.append(f"{where}: {error}")
            continue
        if not len(ids):
            problems.append(f"{where} is empty, and the model has no token to begin a text with")
        if virtual + len(ids) + config.max_new_tokens > most_tokens(language):
            with_virtual = f" behind {virtual:,} of the adapter's" if virtual else ""
            problems.append(
                f"{where} has {len(ids):,} tokens{with_virtual}, and {config.max_new_tokens:,} new ones "
                f"(max_new_tokens) would make more than the model's {language.max_length:,}: shorten it, or ask for "
                "fewer"
            )
        found.append(ids)
    if problems:
        raise DataError(first_of(problems, "prompts that cannot be used"))
    return found


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


def _batch(
    model: Model, rows: Sequence[Row], keys: Sequence[Hashable], active: Mapping[Hashable, ActiveAdapter]
) -> Pieces:
    """The pieces of these rows: of one run, or of one for each adapter where the stack cannot hold all of them."""
    language = language_of(model)
    if len(active) > 1 and language.decode_mixed is not None:
        with model.stack.loaded(keys, active) as stacked:
            if stacked is not None:
                cache = Cache(model.bundle.graph(language.decode_mixed), stacked, len(rows))
                yield from _from_prompts(cache, rows)
                return
    for alone in plan_batches(keys, len(rows), 0):
        writer = writer_of(model, language, active[alone.keys[0]])
        yield from _from_prompts(writer.cache(model, len(alone.rows)), [rows[place] for place in alone.rows])


def _from_prompts(cache: Cache, rows: Sequence[Row]) -> Pieces:
    return run_rows(cache, rows, *side_by_side([row.prompt for row in rows]))
