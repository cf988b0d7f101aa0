"""The model that an app holds: raw input in, predictions out, an adapter per call.

Base and adapters share one session. Activating an adapter looks up arrays that were made when it was
loaded: nothing is copied, and threads may predict with different adapters at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter, absent_adapter
from edgelora.bundle import Bundle
from edgelora.errors import AdapterError, ConfigError, DataError
from edgelora.objectives import Array, Feeds
from edgelora.session import SessionSettings
from edgelora.store import AdapterStore
from edgelora.text import IGNORED, TextEncoder

RawInputs = Sequence[Any] | Mapping[str, "Array"]
AdapterLike = Adapter | str | None
_CACHED_ADAPTERS = 256
_BATCH = 32


@dataclass(frozen=True)
class ActiveAdapter:
    """An adapter ready to feed: graph inputs by name, and the labels of its head."""

    feeds: Mapping[str, NDArray[np.float32]]
    labels: tuple[str, ...] | None
    has_head: bool


class Model:
    """A bundle, its adapter store, and the way from raw input to graph inputs.

    An adapter is given to each call: a name from the store, an `Adapter`, or None for the base. Several
    threads may call at once.
    """

    def __init__(self, bundle: Bundle, store: AdapterStore) -> None:
        self.bundle = bundle
        self.store = store
        self.base = ActiveAdapter(absent_adapter(bundle.manifest), None, False)
        self._cache: OrderedDict[tuple[str, int, tuple[int, int]], ActiveAdapter] = OrderedDict()
        self._lock = threading.Lock()
        preprocessing = bundle.manifest.preprocessing
        self.encoder: TextEncoder | None = None
        if preprocessing.get("kind") == "text":
            self.encoder = TextEncoder(bundle.path, preprocessing, bundle.manifest.inputs)

    @classmethod
    def open(cls, path: str | Path, store: str | Path | None = None, settings: SessionSettings | None = None) -> Model:
        """Open a bundle and the adapter store beside it (`NAME.adapters`), or the one named.

        Raises:
            BundleError: the bundle is missing or damaged. StoreError: the store cannot be opened.
        """
        bundle = Bundle.open(path, settings)
        return cls(bundle, AdapterStore(store or default_store(bundle.path)))

    def activate(self, adapter: AdapterLike) -> ActiveAdapter:
        """The feeds of an adapter: by name from the store (the current version), or one in memory.

        Raises:
            StoreError: no such adapter. AdapterError: it does not fit this base.
        """
        if adapter is None:
            return self.base
        if isinstance(adapter, Adapter):
            return self._prepare(adapter)
        version = self.store.current_version(adapter)
        key = (adapter, version, self.store.stamp(adapter, version))
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        active = self._prepare(self.store.load(adapter, version))
        with self._lock:
            self._cache[key] = active
            while len(self._cache) > _CACHED_ADAPTERS:
                self._cache.popitem(last=False)
        return active

    def _prepare(self, adapter: Adapter) -> ActiveAdapter:
        manifest = self.bundle.manifest
        adapter.validate(manifest)
        has_head = manifest.head is not None and manifest.head.weight in adapter.tensors
        return ActiveAdapter(adapter.feeds(manifest), adapter.labels, has_head)

    def encode(self, inputs: RawInputs) -> Feeds:
        """Graph inputs from texts, or from arrays by input name.

        Raises:
            DataError: an input that is no text, that the bundle does not take, is missing, or has a wrong shape.
        """
        if isinstance(inputs, Mapping):
            return self._check_arrays(inputs)
        if self.encoder is None:
            names = ", ".join(spec.name for spec in self.bundle.manifest.inputs)
            raise DataError(f"this bundle takes arrays by name ({names}), not text: it holds no tokenizer")
        if isinstance(inputs, str):
            raise DataError("predict takes a list of texts: put the one text in a list")
        wrong = [text for text in inputs if not isinstance(text, str)]
        if wrong:
            raise DataError(f"predict takes a list of texts; {wrong[0]!r} is none")
        return {**self.encoder.encode(list(inputs))}

    def _check_arrays(self, inputs: Mapping[str, Array]) -> Feeds:
        specs = {spec.name: spec for spec in self.bundle.manifest.inputs}
        given = {name: np.asarray(array) for name, array in inputs.items()}
        problems = [f"{name} is missing" for name in specs if name not in given]
        problems += [f"{name} is not an input of this bundle" for name in sorted(set(given) - set(specs))]
        sizes: dict[str, int] = {}
        for name, spec in specs.items():
            array = given.get(name)
            if array is None:
                continue
            if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
                problems.append(f"{name} has type {array.dtype}, the bundle takes {spec.dtype}")
            fits = array.ndim == len(spec.shape) and all(
                d == s if isinstance(d, int) else d == "?" or sizes.setdefault(d, s) == s
                for d, s in zip(spec.shape, array.shape, strict=True)
            )
            if not fits:
                known = ", ".join(f"{d} {s}" for d, s in sizes.items())
                problems.append(
                    f"{name} has shape {array.shape}, the bundle takes {spec.shape} ({known or 'any sizes'})"
                )
        if problems:
            raise DataError("; ".join(problems))
        return {name: np.ascontiguousarray(given[name], dtype=spec.dtype) for name, spec in specs.items()}

    def outputs(
        self, inputs: RawInputs, adapter: AdapterLike = None, adapters: Sequence[AdapterLike] | None = None
    ) -> dict[str, Array]:
        """The forward graph's outputs for all rows, in batches of 32; `adapters` names one per row.

        Where heads of different widths meet in one call, the logits of a narrower one end in −inf.

        Raises:
            DataError: the inputs do not fit.
            ConfigError: a head is needed and there is none, or `adapters` has another length.
            StoreError: no such adapter. AdapterError: it does not fit this base.
        """
        return self._answer(inputs, adapter, adapters)[0]

    def _answer(
        self, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> tuple[dict[str, Array], list[ActiveAdapter]]:
        """The outputs, and the adapter that each row was given."""
        feeds = self.encode(inputs)
        rows = len(next(iter(feeds.values())))
        if adapters is not None and len(adapters) != rows:
            raise ConfigError(f"{len(adapters)} adapters for {rows} rows: give one per row")
        named = [adapter] * rows if adapters is None else adapters
        active: dict[int | str | None, ActiveAdapter] = {}
        groups: dict[int | str | None, list[int]] = {}
        for row, one in enumerate(named):
            key = id(one) if isinstance(one, Adapter) else one
            if key not in active:
                active[key] = self._with_head(self.activate(one), one)
            groups.setdefault(key, []).append(row)
        parts = [(np.array(r), self._run_rows(feeds, np.array(r), active[key])) for key, r in groups.items()]
        each = [active[id(one) if isinstance(one, Adapter) else one] for one in named]
        if not parts:
            return self._no_rows(self.activate(adapter)), each
        return (parts[0][1] if len(parts) == 1 else _scatter(rows, parts)), each

    def _no_rows(self, active: ActiveAdapter) -> dict[str, Array]:
        """What the graph returns for no rows; dynamic sizes are 0, the classes those of the adapter."""
        classes = len(active.labels or "x")
        return {
            spec.name: np.zeros((0, *(d if isinstance(d, int) else classes for d in spec.shape[1:])), spec.dtype)
            for spec in self.bundle.manifest.outputs
        }

    def _with_head(self, active: ActiveAdapter, adapter: AdapterLike) -> ActiveAdapter:
        if self.bundle.manifest.head is not None and not active.has_head:
            who = "no adapter was given" if adapter is None else "this adapter has no head"
            raise ConfigError(f"{who}: the classes of this bundle belong to an adapter; train one and name it")
        return active

    def _run_rows(self, feeds: Feeds, rows: NDArray[np.int64], active: ActiveAdapter) -> dict[str, Array]:
        parts: list[dict[str, Array]] = []
        for start in range(0, len(rows), _BATCH):
            chunk = rows[start : start + _BATCH]
            batch = {name: array[chunk] for name, array in feeds.items()}
            parts.append(self.bundle.forward.run({**batch, **active.feeds}))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def predict(
        self, inputs: RawInputs, adapter: AdapterLike = None, adapters: Sequence[AdapterLike] | None = None
    ) -> list[Any] | Array | dict[str, Array]:
        """Labels, a list of labels per word, numbers, embeddings, or raw outputs: by task.

        Numbers are `[rows, outputs]`, embeddings `[rows, features]` of length 1, raw outputs arrays by name.

        Token classification splits a text at white space, unless it is given as a list of words; a word
        beyond the longest input has no label (None). From arrays it gives a label for every position.

        Raises:
            DataError: the inputs do not fit.
            ConfigError: a head is needed and there is none, or `adapters` has another length.
            StoreError: no such adapter. AdapterError: it does not fit this base.
        """
        task = self.bundle.manifest.task
        if task == "token-classification" and not isinstance(inputs, Mapping):
            return self._label_words(inputs, adapter, adapters)
        outputs, active = self._answer(inputs, adapter, adapters)
        if task == "feature-extraction":
            return outputs
        if task == "sentence-embedding":
            return outputs["embedding"]
        if task == "regression":
            return outputs["logits"]
        best = outputs["logits"].argmax(-1)
        return [_name_labels(b, a.labels) for b, a in zip(best, active, strict=True)]

    def _label_words(
        self, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[list[str | int | None]]:
        """The label of each word: that of its first token, as in training."""
        if self.encoder is None or isinstance(inputs, str):
            self.encode(inputs)  # says what is wrong
            return []
        samples = [_words(text) for text in inputs]
        ids, firsts = self.encoder.words(samples)
        outputs, active = self._answer(self.encoder.collate(ids), adapter, adapters)
        labelled: list[list[str | int | None]] = []
        for sample, first, best, one in zip(samples, firsts, outputs["logits"].argmax(-1), active, strict=True):
            labels: list[str | int | None] = [None] * len(sample)
            for place in np.flatnonzero(first != IGNORED).tolist():
                label = int(best[place])
                labels[int(first[place])] = label if one.labels is None else one.labels[label]
            labelled.append(labels)
        return labelled

    def predict_proba(self, inputs: RawInputs, adapter: AdapterLike = None) -> NDArray[np.float64]:
        """Class probabilities `[rows, classes]`, columns in the order of the adapter's labels.

        For token classification `[rows, tokens, classes]`, special tokens and padding included.

        Raises:
            as `outputs`.
        """
        logits = self.outputs(inputs, adapter)["logits"].astype(np.float64)
        exp = np.exp(logits - logits.max(-1, keepdims=True))
        return exp / exp.sum(-1, keepdims=True)

    def labels(self, adapter: AdapterLike) -> tuple[str, ...]:
        """The labels of an adapter's head, in the order of its outputs.

        Raises:
            AdapterError: it has none. StoreError: no such adapter.
        """
        labels = self.activate(adapter).labels
        if labels is None:
            raise AdapterError("this adapter has no labels")
        return labels


def _words(text: Any) -> list[str]:
    words: Any = text.split() if isinstance(text, str) else text
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in cast("list[Any]", words)):
        raise DataError(f"token classification takes texts or lists of words; {text!r} is neither")
    return list(cast("list[str]", words))


def default_store(bundle: Path) -> Path:
    """The store beside a bundle: `home.edgelora` has `home.adapters`."""
    return bundle.with_name(f"{bundle.name.removesuffix('.edgelora')}.adapters")


def _name_labels(best: Any, labels: tuple[str, ...] | None) -> Any:
    if labels is None:
        return best.tolist()
    if np.ndim(best) == 0:
        return labels[int(best)]
    return [labels[int(i)] for i in best]


def _scatter(rows: int, parts: Sequence[tuple[NDArray[np.int64], dict[str, Array]]]) -> dict[str, Array]:
    """Results of groups of rows in the order of the rows; heads may differ in width: the rest is −inf."""
    joined: dict[str, Array] = {}
    for name in parts[0][1]:
        shape = [max(p[name].shape[axis] for _, p in parts) for axis in range(1, parts[0][1][name].ndim)]
        whole = np.full((rows, *shape), -np.inf, np.float32)
        for where, part in parts:
            array = part[name]
            whole[(where, *(slice(0, s) for s in array.shape[1:]))] = array
        joined[name] = whole
    return joined
