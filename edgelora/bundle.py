"""Open a bundle: read the manifest, check version and digests, load graphs when they are first used."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgelora.adapter import Adapter, absent_adapter
from edgelora.errors import BundleError, ConfigError
from edgelora.file_check import FileCheck
from edgelora.manifest import LORA_GRAPHS, TRANSPOSED, Manifest, Prefix, TrainingGraph
from edgelora.memory import trim_heap
from edgelora.methods import Floats, Tensors, split_name
from edgelora.session import Graph, SessionSettings

MANIFEST_FILE = "bundle.json"
_MANIFEST_LIMIT = 16 << 20
_SHOWN = 5


class Bundle:
    """A converted base model on disk. Opening checks it; graphs are loaded on first use and kept.

    May be used from several threads at once.
    """

    def __init__(
        self, path: Path, manifest: Manifest, settings: SessionSettings, files: FileCheck | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.settings = settings
        self._files = files
        self._graphs: dict[tuple[str, SessionSettings], Graph] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, settings: SessionSettings | None = None, verify: bool = True) -> Bundle:
        """Open the bundle at `path`. With `verify`, the sha256 of every file is compared, which reads all of it.

        Files of more than 4 MiB are read by a thread beside what comes next. `verified` waits for it, and so does
        every graph: none is run of a bundle that is damaged.

        Raises:
            BundleError: not a bundle, of an unknown version, or a file is missing or altered.
        """
        path = Path(path)
        manifest_path = path / MANIFEST_FILE
        try:
            if manifest_path.stat().st_size > _MANIFEST_LIMIT:
                raise BundleError(f"{manifest_path}: larger than any manifest; the bundle is damaged")
            text = manifest_path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{manifest_path}: not UTF-8; the bundle is damaged, convert the model again") from error
        except OSError as error:
            raise BundleError(
                f"{path}: not a bundle ({error.strerror or error}); `edgelora convert` writes one"
            ) from error
        manifest = Manifest.from_json(text, str(manifest_path))
        files = FileCheck(path, manifest.files, verify)
        return cls(path, manifest, settings or SessionSettings(), files)

    def verified(self) -> Bundle:
        """The bundle itself, once all of its files are compared that are to be.

        Raises:
            BundleError: a file is altered.
        """
        if self._files is not None:
            self._files.wait()
        return self

    @property
    def forward(self) -> Graph:
        """The inference graph, loaded once.

        Raises:
            BundleError: ONNX Runtime cannot load it.
        """
        return self.graph(self.manifest.forward)

    def graph(self, file: str, settings: SessionSettings | None = None) -> Graph:
        """A graph of the bundle by file name, loaded once; with the bundle's settings unless others are given.

        Raises:
            BundleError: ONNX Runtime cannot load it, or a file of the bundle is altered.
        """
        key = file, settings or self.settings
        with self._lock:
            if key not in self._graphs:
                try:
                    table = self.manifest.memory.get(file)
                    graph = Graph(self.path / file, key[1], table is not None and table.reads_alike)
                finally:
                    self.verified()
                self._graphs[key] = graph
            return self._graphs[key]

    def give_back_pages(self) -> None:
        """Let go of the weights' pages that the loaded graphs have read."""
        with self._lock:
            graphs = list(self._graphs.values())
        for graph in graphs:
            graph.give_back_pages()

    def release(self, file: str) -> None:
        """Forget a loaded graph, so that its memory is freed unless it runs."""
        with self._lock:
            for key in [key for key in self._graphs if key[0] == file]:
                del self._graphs[key]
        trim_heap()

    def use_settings(self, settings: SessionSettings) -> None:
        """Run graphs in another way from now on; those that are loaded are forgotten."""
        with self._lock:
            self.settings = settings
            self._graphs.clear()

    def forward_in(self, graphs: str) -> Graph:
        """The inference graph of a set (`Method.graphs`), loaded once.

        Raises:
            ConfigError: the bundle does not have the set.
        """
        found = self.manifest.graph_set(graphs)
        if found is None:
            raise ConfigError(f"{self.path}: it has no graphs for {graphs} adapters: convert with --methods {graphs}")
        return self.graph(found.forward)

    def feeds(self, adapter: Adapter) -> dict[str, Floats]:
        """The graph inputs of an adapter; see `Adapter.feeds`."""
        return adapter.feeds(self.manifest, self)

    def norms(self, low: Tensors) -> dict[str, Floats]:
        """The lengths of the columns of W + A·B' by point `[out]`, from A and B' of each by input name.

        Raises:
            ConfigError: the bundle has no graph that tells them.
        """
        file = next((found.norms for found in self.manifest.methods.values() if found.norms is not None), None)
        if file is None:
            raise ConfigError(f"{self.path}: it does not tell the lengths of weights: convert with --methods dora")
        points = dict.fromkeys(split_name(name)[0] for name in low)
        made = self.graph(file).run({**absent_adapter(self.manifest), **low}, [f"norm.{point}" for point in points])
        return {point: made[f"norm.{point}"] for point in points}

    def values(self, names: Sequence[str]) -> dict[str, Floats]:
        """The base's own values by the names of the inputs that take their place, float32, contiguous.

        `POINT.base_weight` is `[in, out]`, of a convolution the kernel `[out, in/groups, *kernel]`, of a normalization
        the scale `[features]`; `POINT.base_bias` is `[out]`.

        Raises:
            ConfigError: the bundle does not tell them: the weight is of codes, or there is no such value.
        """
        if not names:
            return {}
        file = self.manifest.values
        if file is None:
            raise ConfigError(f"{self.path}: it does not tell values of its base: convert the model again")
        graph = self.graph(file, SessionSettings(threads=1, low_memory=True))
        told = {name.removesuffix(TRANSPOSED): name for name in graph.outputs}
        if unknown := [name for name in names if name not in told]:
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise ConfigError(
                f"{self.path}: it does not tell {', '.join(unknown[:_SHOWN])}{more}: the base has no such value, or "
                "holds codes in its place"
            )
        made = graph.run({}, [told[name] for name in names])
        graph.give_back_pages()
        return {
            name: np.ascontiguousarray(made[told[name]].T if told[name] != name else made[told[name]]) for name in names
        }

    def training(
        self, loss: str, dropout: bool, prefix: Prefix | None = None, graphs: str = LORA_GRAPHS
    ) -> TrainingGraph:
        """What the training graph for this loss (after a prefix) takes and returns; `graph(….file)` runs it.

        `graphs` names the set of graphs of an adapter method.

        Raises:
            ConfigError: the bundle has none; those that it has are named.
        """
        found = self.manifest.graph_set(graphs)
        records = prefix.training if prefix is not None else () if found is None else found.training
        for graph in records:
            if graph.loss == loss and graph.dropout == dropout:
                return graph
        available = sorted({graph.loss for graph in records})
        if not available:
            raise ConfigError(
                f"{self.path}: no gradient reaches any insertion point (`edgelora points --explain` shows why); "
                'train by forward passes alone: gradient "spsa"'
            )
        if loss in available and graphs != LORA_GRAPHS:
            raise ConfigError(f"{self.path}: its graphs for {graphs} adapters take no dropout")
        if loss in available:
            raise ConfigError(
                f"{self.path}: it cannot train with LoRA dropout: sizes inside do not follow from those of inputs; "
                "set lora_dropout to 0, or convert with these sizes fixed (--fix)"
            )
        raise ConfigError(f"{self.path}: no training graph for the loss {loss!r}; it has {', '.join(available)}")
