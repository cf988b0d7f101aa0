"""The model that an app holds: raw input in, predictions out, an adapter per call.

Base and adapters share one session. Activating an adapter looks up arrays that were made when it was
loaded: nothing is copied, and threads may predict with different adapters at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgelora.active import ActiveAdapter, AdapterCache
from edgelora.adapter import Adapter, absent_adapter
from edgelora.bundle import Bundle
from edgelora.encoders import encoder_of
from edgelora.errors import AdapterError, ConfigError, DataError
from edgelora.inputs import checked_arrays
from edgelora.language.generation import CACHE_MEMORY, Run, begin, check_prompts
from edgelora.language.prompts import Prompt
from edgelora.language.rows import Generation, Pieces
from edgelora.language.sampling import GenerationConfig
from edgelora.manifest import LORA_GRAPHS
from edgelora.mixing import ALONE, AdapterStack, Batch, plan_batches
from edgelora.objectives import Array, Feeds, Inputs
from edgelora.row_groups import in_order, rows_alike
from edgelora.sealing import Key
from edgelora.session import SessionSettings
from edgelora.store import AdapterStore
from edgelora.tasks import Task, task_named
from edgelora.tasks.classes import probabilities

RawInputs = Sequence[Any] | Mapping[str, "Array"]
AdapterLike = Adapter | str | None
ADAPTER_MEMORY = 64 << 20


class Model:
    """A bundle, its adapter store, and the way from raw input to graph inputs.

    An adapter is given to each call: a name from the store, an `Adapter`, or None for the base. Several
    threads may call at once. Adapters that were used last stay in memory, up to `adapter_memory` bytes, and as
    much again where rows with several adapters run together.
    """

    def __init__(self, bundle: Bundle, store: AdapterStore, adapter_memory: int = ADAPTER_MEMORY) -> None:
        self.bundle = bundle
        self.store = store
        self.base = ActiveAdapter(absent_adapter(bundle.manifest), None, False)
        self.cache = AdapterCache(adapter_memory)
        self.stack = AdapterStack(bundle.manifest, adapter_memory)
        self.encoder = encoder_of(bundle.path, bundle.manifest)

    @classmethod
    def open(
        cls,
        path: str | Path,
        store: str | Path | None = None,
        settings: SessionSettings | None = None,
        adapter_memory: int = ADAPTER_MEMORY,
        key: Key | None = None,
    ) -> Model:
        """Open a bundle and the adapter store beside it (`NAME.adapters`), or the one named; `key` is the store's.

        Raises:
            BundleError: the bundle is missing or damaged. StoreError: the store cannot be opened.
        """
        bundle = Bundle.open(path, settings)
        return cls(bundle, AdapterStore(store or default_store(bundle.path), key), adapter_memory)

    def activate(self, adapter: AdapterLike) -> ActiveAdapter:
        """The feeds of an adapter: by name from the store (the current version), or one in memory.

        Raises:
            StoreError: no such adapter. AdapterError: it does not fit this base.
        """
        if adapter is None:
            return self.base
        if isinstance(adapter, Adapter):
            return self._prepare(adapter)
        return self._stored(self._stored_key(adapter))

    def _stored_key(self, name: str) -> tuple[str, int, tuple[int, int]]:
        """What tells the current version of a stored adapter from all others that ever had the name."""
        version = self.store.current_version(name)
        return name, version, self.store.stamp(name, version)

    def _stored(self, key: tuple[str, int, tuple[int, int]]) -> ActiveAdapter:
        active = self.cache.get(key)
        if active is None:
            active = self._prepare(self.store.load_good(key[0], key[1]))
            self.cache.put(key, active)
        return active

    def _prepare(self, adapter: Adapter) -> ActiveAdapter:
        manifest = self.bundle.manifest
        adapter.validate(manifest)
        has_head = manifest.head is not None and manifest.head.weight in adapter.tensors
        return ActiveAdapter(self.bundle.feeds(adapter), adapter.labels, has_head, adapter.method.graphs)

    @property
    def task(self) -> Task:
        """The bundle's task. Raises ConfigError if this package does not know it."""
        return task_named(self.bundle.manifest.task)

    def encode(self, inputs: RawInputs) -> Feeds:
        """Graph inputs from raw inputs, or from arrays by input name. Raises as `inputs` does."""
        made = self.inputs(inputs)
        return made.feeds(np.arange(len(made)))

    def inputs(self, raw: RawInputs) -> Inputs:
        """Graph inputs from texts, from pictures (files, bytes or uint8 arrays), or from arrays by input name.

        Files are read batch by batch.

        Raises:
            DataError: an input of another kind, one that the bundle does not take, is missing, or has a wrong shape.
        """
        if isinstance(raw, Mapping):
            return checked_arrays(self.bundle.manifest, raw)
        if self.encoder is None:
            names = ", ".join(spec.name for spec in self.bundle.manifest.inputs)
            raise DataError(f"this bundle takes arrays by name ({names}), not text: it holds no tokenizer")
        if isinstance(raw, str | bytes | Path):
            raise DataError(f"predict takes a list of {self.encoder.takes}: put the one in a list")
        return self.encoder.inputs(raw)

    def outputs(
        self, inputs: RawInputs, adapter: AdapterLike = None, adapters: Sequence[AdapterLike] | None = None
    ) -> dict[str, Array]:
        """The forward graph's outputs for all rows, in batches; `adapters` names one per row.

        Where heads of different widths meet in one call, the logits of a narrower one end in −inf. Without a head, what
        stands at the places of padding is finite and means nothing.

        Raises:
            DataError: the inputs do not fit.
            ConfigError: a head is needed and there is none, or `adapters` has another length.
            StoreError: no such adapter. AdapterError: it does not fit this base.
        """
        return self.answer(inputs, adapter, adapters)[0]

    def answer(
        self, inputs: RawInputs | Inputs, adapter: AdapterLike = None, adapters: Sequence[AdapterLike] | None = None
    ) -> tuple[dict[str, Array], list[tuple[str, ...] | None]]:
        """The outputs, and the labels of each row's adapter. `inputs` may be what `self.inputs` made; raises as
        `outputs`.
        """
        made = inputs if isinstance(inputs, Inputs) else self.inputs(inputs)
        rows = len(made)
        if adapters is not None and len(adapters) != rows:
            raise ConfigError(f"{len(adapters)} adapters for {rows} rows: give one per row")
        named = [adapter] * rows if adapters is None else adapters
        if not rows:
            return self._no_rows(self.activate(adapter)), []
        keys, given = self.keys(named)
        for key in set(keys) & set(given):
            self._with_head(given[key], key)
        labels: dict[Hashable, tuple[str, ...] | None] = {}
        parts: list[tuple[NDArray[np.int64], dict[str, Array]]] = []
        for alike, positions, most in rows_alike(self.bundle.manifest, made):
            alone = -(-ALONE // positions) if self.bundle.manifest.mixed is not None else 0
            for planned in plan_batches([keys[row] for row in alike], most, alone):
                batch = Batch(tuple(alike[place] for place in planned.rows), planned.keys)
                active = {key: self._with_head(self.keyed(key, given), key) for key in batch.keys}
                labels |= {key: one.labels for key, one in active.items()}
                parts += self._run(made, batch, active)
        rest = 0.0 if self.bundle.manifest.head is None else -np.inf
        return in_order(rows, parts, rest), [labels[key] for key in keys]

    def keys(self, named: Sequence[AdapterLike]) -> tuple[list[Hashable], dict[Hashable, ActiveAdapter]]:
        """For each row what identifies its adapter, and those that are not in the store.

        An adapter in memory may be changed between calls: its key is new at each.

        Raises:
            StoreError: no such adapter. AdapterError: one in memory does not fit this base.
        """
        known: dict[int | str | None, Hashable] = {None: None}
        given: dict[Hashable, ActiveAdapter] = {None: self.base}
        keys: list[Hashable] = []
        for one in named:
            identity = id(one) if isinstance(one, Adapter) else one
            if identity not in known:
                if isinstance(one, Adapter):
                    known[identity] = object()
                    given[known[identity]] = self._prepare(one)
                elif one is not None:
                    known[identity] = self._stored_key(one)
            keys.append(known[identity])
        return keys, given

    def keyed(self, key: Hashable, given: Mapping[Hashable, ActiveAdapter]) -> ActiveAdapter:
        """The adapter of a key that `keys` told, of those `given` with it or from the store.

        Raises:
            StoreError: it is no longer there. AdapterError: it does not fit this base.
        """
        return given.get(key) or self._stored(cast("Any", key))

    def _no_rows(self, active: ActiveAdapter) -> dict[str, Array]:
        """What the graph returns for no rows; dynamic sizes are 0, the classes those of the adapter."""
        classes = len(active.labels or "x")
        return {
            spec.name: np.zeros((0, *(d if isinstance(d, int) else classes for d in spec.shape[1:])), spec.dtype)
            for spec in self.bundle.manifest.outputs
        }

    def _with_head(self, active: ActiveAdapter, key: Hashable) -> ActiveAdapter:
        if self.bundle.manifest.head is not None and not active.has_head:
            who = "no adapter was given" if key is None else "this adapter has no head"
            raise ConfigError(f"{who}: the classes of this bundle belong to an adapter; train one and name it")
        return active

    def _run(
        self, inputs: Inputs, batch: Batch, active: Mapping[Hashable, ActiveAdapter]
    ) -> list[tuple[NDArray[np.int64], dict[str, Array]]]:
        """Rows and their outputs: of one run, or of one for each adapter where the stack cannot hold all of them."""
        rows, first = np.array(batch.rows), active[batch.keys[0]]
        given = inputs.feeds(rows)
        if not batch.is_mixed:
            return [(rows, self.bundle.forward_in(first.graphs).run({**given, **first.feeds}))]
        in_lora = [active[key].graphs == LORA_GRAPHS for key in batch.keys]
        if any(in_lora) and not all(in_lora):
            parts = [np.flatnonzero(np.array(in_lora) == kind).tolist() for kind in (True, False)]
            halves = [Batch(tuple(batch.rows[i] for i in p), tuple(batch.keys[i] for i in p)) for p in parts]
            return [part for half in halves for part in self._run(inputs, half, active)]
        mixed = self.bundle.manifest.mixed
        if all(in_lora) and mixed is not None:
            with self.stack.loaded(batch.keys, active) as stacked:
                if stacked is not None:
                    outputs = self.bundle.graph(mixed).run({**given, **stacked})
                    return [(rows, self._without_padding(outputs, active))]
        alone = plan_batches(batch.keys, len(rows), 0)
        return [
            part
            for one in alone
            for part in self._run(inputs, Batch(tuple(batch.rows[i] for i in one.rows), one.keys), active)
        ]

    def _without_padding(self, outputs: dict[str, Array], active: Mapping[Hashable, ActiveAdapter]) -> dict[str, Array]:
        """Logits as wide as the widest head of these adapters, not of all in the stack."""
        head = self.bundle.manifest.head
        if head is None:
            return outputs
        widest = max(len(one.feeds[head.bias]) for one in active.values())
        return {name: array[..., :widest] if name == "logits" else array for name, array in outputs.items()}

    def predict(
        self, inputs: RawInputs, adapter: AdapterLike = None, adapters: Sequence[AdapterLike] | None = None
    ) -> Any:
        """Labels, a list of labels per word, numbers, embeddings, or raw outputs: by task (`edgelora.tasks`).

        Numbers are `[rows, outputs]`, embeddings `[rows, features]` of length 1, raw outputs arrays by name.

        Token classification splits a text at white space, unless it is given as a list of words; a word
        beyond the longest input has no label (None). From arrays it gives a label for every position.

        Raises:
            DataError: the inputs do not fit.
            ConfigError: a head is needed and there is none, or `adapters` has another length.
            StoreError: no such adapter. AdapterError: it does not fit this base.
        """
        return self.task.predict(self, inputs, adapter, adapters)

    def predict_proba(
        self, inputs: RawInputs, adapter: AdapterLike = None, adapters: Sequence[AdapterLike] | None = None
    ) -> NDArray[np.float64]:
        """Class probabilities `[rows, classes]`, columns in the order of the labels of the row's adapter.

        Where heads of different widths meet in one call, a row of a narrower one ends in zeros.

        For token classification `[rows, tokens, classes]`, special tokens and padding included.

        Raises:
            as `outputs`.
        """
        return probabilities(self.outputs(inputs, adapter, adapters)["logits"])

    def generate(
        self,
        prompts: Sequence[Prompt],
        adapter: AdapterLike = None,
        adapters: Sequence[AdapterLike] | None = None,
        config: GenerationConfig | None = None,
        cache_memory: int = CACHE_MEMORY,
    ) -> list[Generation]:
        """Go on from each prompt: a text, or a conversation, a list of messages with `role` and `content`.

        `adapters` names one per prompt; several run in one batch. As many rows run together as `cache_memory` bytes
        hold the keys and values of. Before anything is computed:

        Raises:
            ConfigError: this bundle generates no text, has no chat template, or no graph with a cache for an adapter's
                method, or the memory is too small for one row.
            DataError: a prompt is no text nor conversation, or it and the new tokens are more than the model takes.
            StoreError: no such adapter. AdapterError: it does not fit this base.
        """
        return self._generating(prompts, adapter, adapters, config, cache_memory).finish()

    def stream(
        self,
        prompts: Sequence[Prompt],
        adapter: AdapterLike = None,
        adapters: Sequence[AdapterLike] | None = None,
        config: GenerationConfig | None = None,
        cache_memory: int = CACHE_MEMORY,
    ) -> Pieces:
        """As `generate`, piece by piece as the texts come; a piece tells its row. Raises at once, as that does."""
        return self._generating(prompts, adapter, adapters, config, cache_memory).pieces

    def _generating(
        self,
        prompts: Sequence[Prompt],
        adapter: AdapterLike,
        adapters: Sequence[AdapterLike] | None,
        config: GenerationConfig | None,
        cache_memory: int,
    ) -> Run:
        check_prompts(prompts)
        named = [adapter] * len(prompts) if adapters is None else adapters
        return begin(self, prompts, named, config or GenerationConfig(), cache_memory)

    def labels(self, adapter: AdapterLike) -> tuple[str, ...]:
        """The labels of an adapter's head, in the order of its outputs.

        Raises:
            AdapterError: it has none. StoreError: no such adapter.
        """
        labels = self.activate(adapter).labels
        if labels is None:
            raise AdapterError("this adapter has no labels")
        return labels


def default_store(bundle: Path) -> Path:
    """The store beside a bundle: `home.edgelora` has `home.adapters`."""
    return bundle.with_name(f"{bundle.name.removesuffix('.edgelora')}.adapters")
