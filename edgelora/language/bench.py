"""How fast a language model reads and writes on this device, without an adapter and with one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter, absent_adapter
from edgelora.bundle import Bundle
from edgelora.errors import ConfigError
from edgelora.language.cache import Cache
from edgelora.manifest import LanguageModel

_WARM_UP = 2

Feeds = Mapping[str, NDArray[np.float32]]


def bench_language(
    bundle: Bundle, language: LanguageModel, adapter: Adapter, rows: int, length: int, steps: int
) -> dict[str, Any]:
    """Tokens a second: `read_…` of `rows` prompts of `length` tokens, `write_…` of what follows them.

    `_off` is without an adapter and `_on` with this one, in turn; `write_…_1` is a row alone. Each is of the median of
    `steps` runs.

    Raises:
        ConfigError: the model does not take as many tokens.
    """
    most = length + _WARM_UP + steps
    if language.max_length and most > language.max_length:
        raise ConfigError(
            f"the model takes {language.max_length:,} tokens, and length {length:,} with {steps} steps makes {most:,}: "
            "take a smaller length, or fewer steps"
        )
    graph = bundle.graph(language.decode)
    sides: dict[str, Feeds] = {"off": absent_adapter(bundle.manifest), "on": bundle.feeds(adapter)}
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, language.vocabulary, (rows, length))
    figures: dict[str, Any] = {}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    caches: dict[str, Cache] = {}
    for _ in range(steps):
        for name, feeds in sides.items():
            caches[name] = Cache(graph, feeds, rows)
            taken[name].append(_seconds(caches[name], prompts))
    for name, times in taken.items():
        figures[f"read_tokens_per_second_{name}"] = rows * length / float(np.median(times))
    for count, suffix in ((rows, ""), (1, "_1")):
        for cache in caches.values():
            cache.cut(length)
            cache.keep(range(count))
        taken = {name: [] for name in sides}
        for _ in range(_WARM_UP + steps):
            for name, cache in caches.items():
                taken[name].append(_seconds(cache, prompts[:count, :1]))
        for name, times in taken.items():
            figures[f"write_tokens_per_second_{name}{suffix}"] = count / float(np.median(times[_WARM_UP:]))
    return figures


def _seconds(cache: Cache, tokens: NDArray[np.int64]) -> float:
    begun = time.perf_counter()
    cache.read(tokens)
    return time.perf_counter() - begun
