"""What a frozen prefix computed of each sample, kept for later epochs: in memory, or in a file that is checked.

Samples are kept without padding, each with its own length, and a batch is padded again with zeros. That is exact
where what stands at masked positions changes nothing; it is tried on the samples, and where it does not hold all of
them are padded to the longest, in the cache and in training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelora.bundle import Bundle
from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConfigError, StoreError
from edgelora.manifest import Manifest, Prefix, TensorSpec
from edgelora.objectives import Array, Feeds, Objective
from edgelora.record_file import DamagedRecord, RecordFile, Records, RecordsInMemory
from edgelora.session import Graph

DTYPES = ("float32", "float16")
PLACES = ("memory", "disk")
MASK = "attention_mask"
SKIP = "skip"
CACHE_SUFFIX = ".cache"
CHUNK = 32  # samples that the prefix computes at once; fixed, so that a cache has the same bytes whenever it is filled
PROBED = 8  # samples on which padding is tried
_SAME = {"float32": 1e-4, "float16": 2e-2, "int8": 1e-1, "int4": 1e-1}

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class CacheSettings:
    """`dtype` is what real numbers are kept in, `limit` the bytes at most (None: no bound), `folder` that of the file
    (None: in memory). What does not fit is computed by the prefix each time.
    """

    dtype: str = "float32"
    limit: int | None = None
    folder: Path | None = None


def chosen_prefix(manifest: Manifest, train_last: int | None, keeps: bool = False) -> Prefix | None:
    """The prefix for training the last layers alone, or with `keeps` that for skips; None if the whole model runs.

    Raises:
        ConfigError: the bundle has no such graphs.
    """
    if train_last is None:
        return next((p for p in manifest.prefixes if p.name == SKIP and keeps), None)
    found = next((p for p in manifest.prefixes if p.name == f"last-{train_last}"), None)
    if found is None:
        had = ", ".join(p.name.removeprefix("last-") for p in manifest.prefixes if p.name.startswith("last-"))
        raise ConfigError(
            f"the bundle has no graphs for train_last {train_last}"
            + (f"; it has {had}" if had else "")
            + f": convert with --train-last {train_last}"
        )
    return found


class PrefixCache:
    """The prefix's values of the samples of one objective. `feeds` or `values` fills it when it is first called.

    `settings` None keeps nothing: the prefix runs each time. `reference` are an adapter's feeds, at which padding
    is tried.

    Raises:
        ConfigError: samples of different sizes without an attention mask.
        StoreError: the file cannot be written.
    """

    def __init__(
        self,
        bundle: Bundle,
        prefix: Prefix,
        objective: Objective,
        settings: CacheSettings | None,
        reference: Mapping[str, Array],
    ) -> None:
        self.bundle, self.prefix, self.objective = bundle, prefix, objective
        self.settings, self._reference = settings, reference
        manifest = bundle.manifest
        self._batch = _batch_axis(manifest)
        self._sequence = next((str(s.shape[1]) for s in manifest.inputs if s.name == MASK), None)
        self._dtypes = [_kept_dtype(spec, settings.dtype if settings else "float32") for spec in prefix.kept]
        self.width: int | None = None  # that all are padded to, if it must be one
        self.refilled = 0
        self._records: Records | None = None
        self._layout: _Layout | None = None

    @property
    def size(self) -> int:
        """Bytes that are kept; 0 before the first use."""
        return 0 if self._records is None else self._records.size

    def foretold(self) -> int:
        """Bytes that will be kept of all samples, where padding is free."""
        layout = self._lay_out()
        return int(layout.record_sizes(None if self.settings is None else self.settings.limit).sum())

    def close(self) -> None:
        """Let go of the records; the file stays."""
        if self._records is not None:
            self._records.close()
            self._records = None

    def feeds(self, feeds: Feeds, rows: Rows) -> Feeds:
        """The feeds of a batch of these samples, with the prefix's values added to them."""
        if self.settings is None:
            return feeds | self._run(feeds)
        self._ready(self.settings)
        feeds = self._widened(feeds)
        return feeds | self._held(self.settings, self._sizes(feeds), rows)

    def suffices(self, *graphs: Graph) -> bool:
        """Whether `values` are all that the graphs take of a sample, so that its inputs need not be made."""
        inputs = {spec.name for spec in self.bundle.manifest.inputs}
        taken = any(not graph.inputs.keys().isdisjoint(inputs) for graph in graphs)
        return self.settings is not None and self._sequence is None and not taken

    def values(self, rows: Rows) -> Feeds:
        """The prefix's values of a batch of these samples, for a graph that they suffice."""
        assert self.settings is not None
        return self._held(self.settings, self._sizes_of(self._ready(self.settings), len(rows)), rows)

    def is_at_hand(self) -> bool:
        """Whether `values` does no more than copy, from memory, so that several threads may ask for them at once."""
        assert self.settings is not None
        layout = self._ready(self.settings)
        none = np.zeros(0, np.int64)
        return layout.one_shape is not None and self._records is not None and self._records.table(none) is not None

    def _sizes_of(self, layout: _Layout, samples: int) -> dict[str, int]:
        """The sizes of so many samples, where all have the same."""
        return layout.sizes if self._batch is None else layout.sizes | {self._batch: samples * layout.parts}

    def _shapes(self, sizes: dict[str, int]) -> list[tuple[int, ...]]:
        """The shapes of a batch's values."""
        return [tuple(evaluate_dimension(d, sizes) for d in spec.shape) for spec in self.prefix.kept]

    def _held(self, settings: CacheSettings, sizes: dict[str, int], rows: Rows) -> Feeds:
        """The values, computed anew where the file is damaged."""
        try:
            return self._gathered(sizes, rows)
        except DamagedRecord:
            self._fill(settings)
            try:
                return self._gathered(sizes, rows)
            except DamagedRecord as error:
                raise StoreError(
                    f"{error}: the disk gives back other bytes than were written; use --cache memory"
                ) from error

    # --- filling --------------------------------------------------------------------------------------------

    def _ready(self, settings: CacheSettings) -> _Layout:
        """The layout of the records, which are there."""
        if self._records is None:
            self._prepare(settings)
        assert self._layout is not None
        return self._layout

    def _prepare(self, settings: CacheSettings) -> None:
        """Lay the records out, and take them from the file if it holds them, else compute them."""
        self._layout = layout = self._lay_out()
        if settings.folder is not None:
            held = RecordFile.open(self._path(settings.folder, layout), self._facts(layout))
            if held is not None and self._is_of(held, layout, settings):
                held.touch()
                self.width = held.facts.get("width")
                self._records, self._layout = held, layout if self.width is None else layout.widened(self)
                return
        if not self._padding_is_free(layout):
            self.width = layout.longest
            self._layout = layout.widened(self)
        self._fill(settings)

    def _is_of(self, held: RecordFile, layout: _Layout, settings: CacheSettings) -> bool:
        """Whether the file has a record of the right size for each sample."""
        width = held.facts.get("width")
        if width is not None:
            if type(width) is not int or width != layout.longest:
                return False
            layout = replace(layout, lengths=np.full_like(layout.lengths, width))
        return np.array_equal(held.sizes, layout.record_sizes(settings.limit))

    def _fill(self, settings: CacheSettings) -> None:
        """Compute all that fits, chunk by chunk in the fixed order."""
        layout = self._layout
        assert layout is not None
        sizes = layout.record_sizes(settings.limit)
        if self._records is not None:
            self.refilled += 1
        if settings.folder is None:
            records: Records = RecordsInMemory(sizes)
        else:
            facts = self._facts(layout) | {"width": self.width}
            records = RecordFile.create(self._path(settings.folder, layout), facts, sizes)
        try:
            for chunk in layout.chunks:
                if not sizes[chunk[0] * layout.parts]:
                    continue
                kept = self._computed(self._widened(self.objective.inputs(chunk)))
                for place, item in enumerate(layout.items(chunk)):
                    records.write(item, self._record(kept, place, layout.lengths[item]))
            self._records = records.finish()
        except OSError as error:
            raise StoreError(
                f"{settings.folder}: the prefix's values cannot be kept ({error.strerror or error}); free some space, "
                "bound them with --cache-limit, or use --cache memory"
            ) from error
        finally:
            records.abandon()
        if len(sizes) == np.count_nonzero(sizes):
            self.bundle.release(self.prefix.file)

    def _lay_out(self) -> _Layout:
        """Look at every sample once: its length, and a digest of all."""
        lengths = self.objective.lengths()
        order = np.argsort(lengths, kind="stable")
        chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
        digest = hashlib.sha256()
        parts, own, other = 1, np.zeros(0, np.int64), None
        for chunk in chunks:
            feeds = self.objective.inputs(chunk)
            sizes = self._sizes(feeds)
            count = len(next(iter(feeds.values())))
            if not own.size:
                parts = count // len(chunk)
                own = np.zeros(len(lengths) * parts, np.int64)
            if self._sequence is not None:
                mask = feeds[MASK] != 0
                own[_items(chunk, parts)] = mask.shape[1] - mask[:, ::-1].argmax(1)
            rest = {n: s for n, s in sizes.items() if n not in (self._batch, self._sequence)}
            if other not in (None, rest):
                raise ConfigError(
                    "samples of different sizes without an attention_mask cannot be kept after the prefix: train with "
                    "cache none (--cache none)"
                )
            other = rest
            for name in sorted(feeds):
                digest.update(f"{name} {feeds[name].dtype} {feeds[name].shape}".encode())
                digest.update(np.ascontiguousarray(feeds[name]).tobytes())
        kept, found = self.prefix.kept, digest.hexdigest()
        return _Layout(kept, self._dtypes, self._sequence, other or {}, own, parts, chunks, found)

    def _padding_is_free(self, layout: _Layout) -> bool:
        """Whether what stands at masked positions changes neither the prefix's values nor the outputs elsewhere."""
        lengths = self.objective.lengths()
        if self._sequence is None or lengths.min() == lengths.max():
            return True
        order = np.argsort(lengths, kind="stable")
        rows = order[np.linspace(0, len(order) - 1, min(PROBED, len(order))).round().astype(np.int64)]
        tolerance = _SAME[self.bundle.manifest.source.get("precision", "float32")]
        padded, alone = self.objective.inputs(rows), self.objective.inputs(rows[:1])
        whole, single = self._run(padded), self._run(alone)
        own = layout.lengths[_items(rows, layout.parts)]
        zeroed: Feeds = {spec.name: np.zeros_like(whole[spec.name]) for spec in self.prefix.kept}
        for place, length in enumerate(own):
            for spec, shape in zip(self.prefix.kept, layout.shapes(int(length)), strict=True):
                part = (place, *map(slice, shape))
                zeroed[spec.name][part] = whole[spec.name][part]
                if place == 0 and not _close(whole[spec.name][part], single[spec.name][part], tolerance):
                    return False
        forward = self.bundle.graph(self.prefix.forward)
        ours = forward.run({**padded, **self._reference, **zeroed})
        theirs = forward.run({**padded, **self._reference, **whole})
        self.bundle.release(self.prefix.forward)
        mask = padded[MASK] != 0
        for spec in self.bundle.manifest.outputs:
            a, b = ours[spec.name], theirs[spec.name]
            if len(spec.shape) > 1 and spec.shape[1] == self._sequence and self.objective.loss != "cotangent":
                a, b = a[mask], b[mask]
            if not _close(a, b, tolerance):
                return False
        return True

    def _computed(self, feeds: Feeds) -> list[Array]:
        """The prefix's values of a batch, in the types in which they are kept."""
        made = self._run(feeds)
        return [made[s.name].astype(t, copy=False) for s, t in zip(self.prefix.kept, self._dtypes, strict=True)]

    def _run(self, feeds: Feeds) -> Feeds:
        graph = self.bundle.graph(self.prefix.file)
        made = graph.run(feeds)
        graph.give_back_pages()
        return made

    def _record(self, kept: Sequence[Array], place: int, length: int) -> bytes:
        """The bytes of one sample of a batch, without padding."""
        assert self._layout is not None
        shapes = self._layout.shapes(length)
        return b"".join(x[(place, *map(slice, shape))].tobytes() for x, shape in zip(kept, shapes, strict=True))

    # --- using ----------------------------------------------------------------------------------------------

    def _gathered(self, sizes: dict[str, int], rows: Rows) -> Feeds:
        """The values of these samples, padded with zeros to the batch's sizes."""
        layout, records = self._layout, self._records
        assert layout is not None and records is not None
        shapes = self._shapes(sizes)
        if (even := self._at_once(layout, records, _items(rows, layout.parts), shapes)) is not None:
            return even
        items = layout.items(rows)
        missing = [row for row in rows if not records.holds(int(row) * layout.parts)]
        made: dict[int, bytes] = {}
        if missing:
            chosen = np.asarray(missing, np.int64)
            kept = self._computed(self._widened(self.objective.inputs(chosen)))
            for place, item in enumerate(layout.items(chosen)):
                made[item] = self._record(kept, place, layout.lengths[item])
        out = [np.zeros(shape, dtype) for shape, dtype in zip(shapes, self._dtypes, strict=True)]
        for place, item in enumerate(items):
            record, offset = made[item] if item in made else records.read(item), 0
            for x, shape in zip(out, layout.shapes(int(layout.lengths[item])), strict=True):
                count = math.prod(shape)
                x[(place, *map(slice, shape))] = np.frombuffer(record, x.dtype, count, offset).reshape(shape)
                offset += count * x.itemsize
        return self._named(out)

    def _at_once(self, layout: _Layout, records: Records, items: Rows, shapes: list[tuple[int, ...]]) -> Feeds | None:
        """The values of items that all fill the batch's `shapes`, from the memory where they lie one like the other."""
        if (own := layout.one_shape) is None or [(len(items), *shape) for shape in own] != shapes:
            return None
        if (table := records.table(items)) is None:
            return None
        out: list[Array] = []
        offset = 0
        for shape, dtype in zip(shapes, self._dtypes, strict=True):
            end = offset + math.prod(shape[1:]) * dtype.itemsize
            out.append(np.ascontiguousarray(table[:, offset:end]).view(dtype).reshape(shape))
            offset = end
        return self._named(out)

    def _named(self, values: list[Array]) -> Feeds:
        """The values by their names, in the types that graphs take them in."""
        return {spec.name: x.astype(spec.dtype, copy=False) for spec, x in zip(self.prefix.kept, values, strict=True)}

    def _sizes(self, feeds: Feeds) -> dict[str, int]:
        return {
            str(d): s
            for spec in self.bundle.manifest.inputs
            for d, s in zip(spec.shape, feeds[spec.name].shape, strict=True)
        }

    def _widened(self, feeds: Feeds) -> Feeds:
        """The feeds, padded to the one width if there is one."""
        if self.width is None:
            return feeds
        manifest = self.bundle.manifest
        specs = {s.name: s for s in (*manifest.inputs, *(s for g in self.prefix.training for s in g.inputs))}
        pad_id = manifest.preprocessing.get("pad_id", 0)
        return {
            name: _padded(x, specs[name], self._sequence, self.width, pad_id if name == "input_ids" else 0)
            for name, x in feeds.items()
        }

    def _facts(self, layout: _Layout) -> dict[str, object]:
        """What a file must be of: base, prefix, samples and type."""
        manifest = self.bundle.manifest
        return {
            "base": manifest.base_digest,
            "prefix": manifest.files[self.prefix.file].sha256,
            "samples": layout.digest,
            "dtypes": [str(t) for t in self._dtypes],
            "limit": self.settings.limit if self.settings else None,
        }

    def _path(self, folder: Path, layout: _Layout) -> Path:
        return folder / f"prefix-{layout.digest[:16]}{CACHE_SUFFIX}"


@dataclass(frozen=True)
class _Layout:
    """Where the values of each sample lie: an item is one input row of a sample, of which there are `parts`."""

    kept: tuple[TensorSpec, ...]
    dtypes: list[np.dtype]
    sequence: str | None
    sizes: dict[str, int]
    lengths: NDArray[np.int64]
    parts: int
    chunks: list[Rows]
    digest: str

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @cached_property
    def one_shape(self) -> list[tuple[int, ...]] | None:
        """The shapes of any item's values; None where items have several lengths."""
        first = int(self.lengths[0])
        return self.shapes(first) if (self.lengths == first).all() else None

    def widened(self, cache: PrefixCache) -> _Layout:
        """The same with the one width for all."""
        assert cache.width is not None
        return replace(self, lengths=np.full_like(self.lengths, cache.width))

    def items(self, rows: Rows) -> list[int]:
        """The items of a batch of samples, in the order of its input rows."""
        return _items(rows, self.parts).tolist()

    def shapes(self, length: int) -> list[tuple[int, ...]]:
        """The shapes of an item's values."""
        sizes = self.sizes | ({self.sequence: length} if self.sequence is not None else {})
        return [tuple(evaluate_dimension(d, sizes) for d in spec.shape[1:]) for spec in self.kept]

    def record_sizes(self, limit: int | None) -> NDArray[np.int64]:
        """Bytes of each item: 0 of those that do not fit, whole chunks from the shortest samples on."""
        by_length = {
            int(n): sum(math.prod(s) * t.itemsize for s, t in zip(self.shapes(int(n)), self.dtypes, strict=True))
            for n in np.unique(self.lengths)
        }
        sizes, total = np.zeros(len(self.lengths), np.int64), 0
        for chunk in self.chunks:
            items = self.items(chunk)
            needed = [by_length[int(self.lengths[item])] for item in items]
            total += sum(needed)
            if limit is not None and total > limit:
                break
            sizes[items] = needed
        return sizes


def _items(rows: Rows, parts: int) -> NDArray[np.int64]:
    """Objectives of several texts a sample stack them: all first ones, then all second ones."""
    return rows if parts == 1 else np.concatenate([rows * parts + part for part in range(parts)])


def _batch_axis(manifest: Manifest) -> str | None:
    return next((str(s.shape[0]) for s in manifest.inputs if len(s.shape) > 1 and isinstance(s.shape[0], str)), None)


def _kept_dtype(spec: TensorSpec, real: str) -> np.dtype:
    return np.dtype(real if spec.dtype == "float32" else spec.dtype)


def _padded(x: Array, spec: TensorSpec, sequence: str | None, width: int, value: int) -> Array:
    widths = [(0, width - s if d == sequence else 0) for d, s in zip(spec.shape, x.shape, strict=True)]
    return np.pad(x, widths, constant_values=value)


def _close(a: Array, b: Array, tolerance: float) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max(initial=0.0)) <= tolerance * max(float(np.abs(b).max(initial=0.0)), 1e-12)
