"""What a language model keeps of the tokens that it has read, so that each is read once: keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import BundleError
from edgelora.manifest import MIXED_INDEX, LanguageModel
from edgelora.session import Graph, Value, value_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
MOST_AT_ONCE = 256  # slots of a run: attention over a long prompt would take memory as its square

_PAST, _PRESENT = "past_key_values.", "present."


class Cache:
    """Rows of tokens, and the decode graph's keys and values of them, float32 `[rows, kv_heads, slots, head_size]`.

    All rows have as many slots; a shorter one begins with empty slots. The keys and values are those that the graph
    makes with the adapters in `feeds`, and with no others. For one thread at a time.
    """

    def __init__(
        self,
        graph: Graph,
        feeds: Mapping[str, NDArray[np.generic]],
        rows: int,
        before: Mapping[str, Floats] | None = None,
    ) -> None:
        """No rows have been read yet. `before` are the keys and values `[1, kv_heads, tokens, head_size]`, by output
        name, of tokens that stand before those of every row, and are none of its slots.

        Raises:
            BundleError: it is no decode graph.
        """
        before = before or {}
        self._graph = graph
        self._feeds = {name: value_of(array) for name, array in feeds.items() if name in graph.inputs}
        self._past: dict[str, Value] = {
            name: value_of(_repeated(before.get(_present(name)), rows, shape))
            for name, shape in graph.inputs.items()
            if name.startswith(_PAST)
        }
        self._outputs = ["logits", *(_present(name) for name in self._past)]
        if not self._past or not set(self._outputs) <= set(graph.outputs):
            raise BundleError("the bundle's graph for generation keeps no keys and values: convert the model again")
        self._before = next(iter(before.values())).shape[2] if before else 0
        self._filled = np.ones((rows, self._before), np.int64)

    @property
    def slots(self) -> int:
        """How many slots each row has."""
        return self._filled.shape[1] - self._before

    def read(self, tokens: Ints, filled: Ints | None = None) -> Floats:
        """Read the tokens `[rows, more]` behind those that are there; the logits `[rows, vocabulary]` after the last.

        `filled` tells tokens (1) from empty slots (0), which stand before a row's first token; without it there are
        none.

        Raises:
            BundleError: ONNX Runtime cannot run the graph.
        """
        filled = np.ones_like(tokens) if filled is None else filled
        logits = np.zeros((len(tokens), 0), np.float32)
        for start in range(0, tokens.shape[1], MOST_AT_ONCE):
            part = slice(start, start + MOST_AT_ONCE)
            logits = self._run(tokens[:, part], filled[:, part])
        return logits

    def _run(self, tokens: Ints, filled: Ints) -> Floats:
        rows, width = tokens.shape
        mask = np.concatenate([self._filled, filled], 1)
        positions = np.maximum(self._filled.sum(1, keepdims=True) + filled.cumsum(1) - 1, 0)
        given = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": positions,
            "last": np.full(rows, width - 1, np.int64),
        }
        values = {name: value_of(array) for name, array in given.items() if name in self._graph.inputs}
        made = self._graph.run_values({**self._feeds, **self._past, **values}, self._outputs)
        logits: Floats = made["logits"].numpy()
        self._past, self._filled = {name: made[_present(name)] for name in self._past}, mask
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, and the slots that are empty in all of them."""
        kept = list(rows)
        self._filled = self._filled[kept]
        empty = int(self._filled.argmax(1).min()) if self._filled.size else 0
        self._filled = self._filled[:, empty:]
        self._change(lambda array: array[kept, :, empty:])
        if MIXED_INDEX in self._feeds:
            self._feeds[MIXED_INDEX] = value_of(self._feeds[MIXED_INDEX].numpy()[kept])

    def cut(self, slots: int) -> None:
        """Forget what lies behind the first `slots` slots."""
        kept = self._before + slots
        self._filled = self._filled[:, :kept]
        self._change(lambda array: array[:, :, :kept])

    def _change(self, change: Callable[[Floats], Floats]) -> None:
        self._past = {name: value_of(change(value.numpy())) for name, value in self._past.items()}


def _repeated(before: Floats | None, rows: int, shape: Sequence[int | str | None]) -> Floats:
    """What stands before each of the rows, or no slots of this shape."""
    if before is None:
        return np.zeros([rows, *(d if isinstance(d, int) else 0 for d in shape[1:])], np.float32)
    return np.repeat(before, rows, 0)


def _present(past: str) -> str:
    return _PRESENT + past.removeprefix(_PAST)


def bytes_per_token(language: LanguageModel) -> int:
    """The memory that a slot of a row takes while a run makes new keys and values beside those that it reads."""
    made_and_read, keys_and_values, float32 = 2, 2, 4
    return made_and_read * keys_and_values * float32 * language.layers * language.kv_heads * language.head_size
