"""How adapters of each method write: the graph with a cache that takes them, and what stands before every text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelora.active import ActiveAdapter
from edgelora.errors import ConfigError
from edgelora.language.cache import Cache
from edgelora.manifest import LORA_GRAPHS, GraphSet, LanguageModel

if TYPE_CHECKING:
    from edgelora.runtime import Model

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Writer:
    """The file of a graph with a cache, and what it is fed of an adapter.

    `before` are keys and values `[1, kv_heads, virtual, head_size]` of tokens before every text, by output name.
    """

    file: str
    feeds: Mapping[str, Floats]
    before: Mapping[str, Floats]

    def cache(self, model: Model, rows: int) -> Cache:
        """An empty cache of so many rows."""
        return Cache(model.bundle.graph(self.file), self.feeds, rows, self.before)


def virtual_tokens(model: Model, language: LanguageModel, active: ActiveAdapter) -> int:
    """How many tokens of its own the adapter puts before a text.

    Raises:
        ConfigError: the bundle has no graph with a cache that takes the adapter.
    """
    _, found = _set_of(model, language, active)
    return 0 if found is None or found.before is None else len(active.feeds[found.inputs[0].name])


def writer_of(model: Model, language: LanguageModel, active: ActiveAdapter) -> Writer:
    """What writes with the adapter. Raises as `virtual_tokens` does."""
    decode, found = _set_of(model, language, active)
    if found is None or found.before is None:
        return Writer(decode, active.feeds, {})
    return Writer(decode, model.base.feeds, model.bundle.graph(found.before).run(dict(active.feeds)))


def _set_of(model: Model, language: LanguageModel, active: ActiveAdapter) -> tuple[str, GraphSet | None]:
    """The graph with a cache for the adapter, and its set of graphs, None of LoRA's."""
    if active.graphs == LORA_GRAPHS:
        return language.decode, None
    found = model.bundle.manifest.graph_set(active.graphs)
    if found is None or found.decode is None:
        raise ConfigError(
            f"{active.graphs} adapters do not generate here: the bundle has no graph with a cache for them; convert it "
            f"again with --methods {active.graphs}"
        )
    return found.decode, found
