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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter
from edgelora.bundle import Bundle
from edgelora.errors import AdapterError, ConfigError, DataError
from edgelora.objectives import Array, Feeds
from edgelora.session import SessionSettings
from edgelora.store import AdapterStore
from edgelora.text import TextEncoder

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
    """A bundle, its adapter store, and the way from raw input to graph inputs."""

    def __init__(self, bundle: Bundle, store: AdapterStore) -> None:
        self.bundle = bundle
        self.store = store
        self.base = ActiveAdapter(absent_feeds(bundle), None, False)
        self._cache: OrderedDict[tuple[str, int], ActiveAdapter] = OrderedDict()
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
        key = (adapter, self.store.current_version(adapter))
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        active = self._prepare(self.store.load(adapter))
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
            raise DataError("predict takes a list of texts; put the one text in a list")
        return {**self.encoder.encode([_valid_text(text, place) for place, text in enumerate(inputs, 1)])}

    def _check_arrays(self, inputs: Mapping[str, Array]) -> Feeds:
        feeds: Feeds = {}
        problems: list[str] = []
        for spec in self.bundle.manifest.inputs:
            if spec.name not in inputs:
                problems.append(f"{spec.name} is missing")
                continue
            array = np.asarray(inputs[spec.name])
            wrong = len(array.shape) != len(spec.shape) or any(
                isinstance(d, int) and d != s for d, s in zip(spec.shape, array.shape, strict=False)
            )
            if wrong:
                problems.append(f"{spec.name} has shape {array.shape}, the bundle takes {spec.shape}")
            feeds[spec.name] = np.ascontiguousarray(array, dtype=spec.dtype)
        unknown = set(inputs) - {spec.name for spec in self.bundle.manifest.inputs}
        problems += [f"{name} is not an input of this bundle" for name in sorted(unknown)]
        if problems:
            raise DataError("; ".join(problems))
        return feeds

    def outputs(
        self, inputs: RawInputs, adapter: AdapterLike = None, adapters: Sequence[AdapterLike] | None = None
    ) -> dict[str, Array]:
        """The forward graph's outputs for all rows, in batches; `adapters` names one per row.

        Raises:
            ConfigError: a head is needed and there is none, or `adapters` has another length.
        """
        feeds = self.encode(inputs)
        rows = len(next(iter(feeds.values())))
        if adapters is None:
            return self._run_rows(feeds, np.arange(rows), self._with_head(self.activate(adapter), adapter))
        if len(adapters) != rows:
            raise ConfigError(f"{len(adapters)} adapters for {rows} rows: give one per row")
        groups: dict[int, list[int]] = {}
        active: dict[int, ActiveAdapter] = {}
        for row, one in enumerate(adapters):
            chosen = self._with_head(self.activate(one), one)
            groups.setdefault(id(chosen.feeds), []).append(row)
            active[id(chosen.feeds)] = chosen
        parts = [(np.array(r), self._run_rows(feeds, np.array(r), active[k])) for k, r in groups.items()]
        return _scatter(rows, parts)

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
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def predict(
        self, inputs: RawInputs, adapter: AdapterLike = None, adapters: Sequence[AdapterLike] | None = None
    ) -> list[Any] | Array | dict[str, Array]:
        """Labels (classification), a list of labels per token, numbers, embeddings, or raw outputs: by task."""
        task = self.bundle.manifest.task
        outputs = self.outputs(inputs, adapter, adapters)
        if task == "feature-extraction":
            return outputs
        if task == "sentence-embedding":
            return outputs["embedding"]
        if task == "regression":
            return outputs["logits"]
        rows = len(outputs["logits"])
        named = adapters if adapters is not None else [adapter] * rows
        best = outputs["logits"].argmax(-1)
        return [_name_labels(b, self.activate(a).labels) for b, a in zip(best, named, strict=True)]

    def predict_proba(self, inputs: RawInputs, adapter: AdapterLike = None) -> NDArray[np.float64]:
        """Class probabilities `[rows, classes]`, columns in the order of the adapter's labels."""
        logits = self.outputs(inputs, adapter)["logits"].astype(np.float64)
        exp = np.exp(logits - logits.max(-1, keepdims=True))
        return exp / exp.sum(-1, keepdims=True)

    def labels(self, adapter: AdapterLike) -> tuple[str, ...]:
        """The labels of an adapter's head."""
        labels = self.activate(adapter).labels
        if labels is None:
            raise AdapterError("this adapter has no labels")
        return labels


def _valid_text(text: Any, place: int) -> str:
    if not isinstance(text, str):
        raise DataError(f"input {place} is of type {type(text).__name__}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"text {place} is not valid Unicode: it was not UTF-8, or it holds half a character") from error
    return text


def default_store(bundle: Path) -> Path:
    """The store beside a bundle: `home.edgelora` has `home.adapters`."""
    return bundle.with_name(f"{bundle.name.removesuffix('.edgelora')}.adapters")


def absent_feeds(bundle: Bundle) -> dict[str, NDArray[np.float32]]:
    """Rank 0 at every point: the base."""
    feeds: dict[str, NDArray[np.float32]] = {}
    for point in bundle.manifest.points:
        feeds[point.input_a] = np.zeros((point.in_features, 0), np.float32)
        feeds[point.input_b] = np.zeros((0, point.out_features), np.float32)
    return feeds


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
