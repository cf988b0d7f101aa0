"""The only file that imports onnxruntime: a graph on disk becomes something to run."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

# The Linux wheel carries telemetry and writes a device id into the home folder (docs/decisions/0007).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

from edgelora.byte_products import keep_exact
from edgelora.cores import available_cores
from edgelora.errors import BundleError, ConfigError
from edgelora.mapped_pages import added, give_back, mapped_ranges
from edgelora.neighbours import free_cores
from edgelora.page_window import PageWindow

ort: Any = onnxruntime  # the package carries no types
ENGINE_VERSION: str = ort.__version__

Feeds = Mapping[str, np.ndarray]
Value = Any  # ONNX Runtime's own array, which runs pass on without a copy; its `numpy()` is a copy
AWAKE = 200  # microseconds, about what it costs to be woken (0048)
_BOUNDED_FROM = (1, 26)  # the ONNX Runtime that has an end to waiting awake other than its own, which is far
_loading = threading.Lock()  # what a session maps is told from what was mapped before it


@dataclass(frozen=True)
class SessionSettings:
    """How graphs are run on this device.

    `threads` is the number of cores for one operator (None: all). `low_memory` gives up prepacked copies
    of the weights: less memory, by up to the size of the weights that products read. With `spinning`, threads
    that wait stay awake for a moment: quicker, at less work, where nothing else wants the cores, and slower beside
    others that do; None: they do where the cores are free when a graph is loaded (docs/decisions/0050). `window` bounds
    the mapped weights that are resident while a graph runs, in bytes (page_window.py; Linux); with `low_memory`, for
    packed weights are not mapped.
    """

    threads: int | None = None
    low_memory: bool = False
    spinning: bool | None = None
    window: int | None = None

    @property
    def cores(self) -> int:
        """How many threads compute at once."""
        return self.threads or available_cores()

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, not {self.threads}")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"the window must be at least one byte, not {self.window}")


@dataclass(frozen=True, eq=False)
class Places:
    """Arrays that run after run writes its outputs into, and the names of inputs whose arrays are mostly the same in
    each: both stay bound. Other inputs are let go when a run ends.
    """

    outputs: Mapping[str, np.ndarray]
    staying: frozenset[str] = frozenset()


class Graph:
    """A loaded graph. `run` may be called from several threads at once.

    `inputs` maps names to shapes (sizes, or names of dynamic dimensions), `outputs` are names, in order. `reads_alike`
    tells that every run reads the same of the mapped weights.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path, settings: SessionSettings, reads_alike: bool = False) -> None:
        self._path, self._reads_alike = path, reads_alike
        with _loading:
            mapped = mapped_ranges(path.parent.resolve())
            self._session = _session(path, _options(settings))
            self._mapped = added(mapped, mapped_ranges(path.parent.resolve()))
        self._window = None if settings.window is None else PageWindow(self._mapped, settings.window)
        self.inputs: dict[str, tuple[int | str | None, ...]] = {
            x.name: tuple(x.shape) for x in self._session.get_inputs()
        }
        self.outputs: tuple[str, ...] = tuple(y.name for y in self._session.get_outputs())
        self._bound: WeakKeyDictionary[Places, _Bound] = WeakKeyDictionary()
        self.give_back_pages()  # of what was packed

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Evaluate, and return arrays by output name: `outputs` alone, else all of them.

        Feeds that the graph does not take are passed over.

        Raises:
            BundleError: ONNX Runtime cannot run it: an input is missing, of another type or shape, or out of range,
                which callers check as far as the manifest tells, or the bundle is damaged.
        """
        names = list(outputs) if outputs is not None else list(self.outputs)
        if not names:
            return {}  # ONNX Runtime would take it for all
        # numpy's arithmetic turns an array without axes into a number, which ONNX Runtime does not take
        wanted = {name: np.asarray(feeds[name]) for name in self.inputs if name in feeds}
        with self._running():
            made = self._session.run(names, wanted)
        return dict(zip(names, made, strict=True))

    def run_into(self, feeds: Mapping[str, np.ndarray | Value], places: Places) -> None:
        """Evaluate, and write each of the outputs into its place, of the output's very shape and type.

        From several threads at once each has places of its own.
        """
        with self._running():
            bound = self._bound.get(places)
            if bound is None:
                bound = self._bound[places] = _Bound(self._session, places)
            bound.run({name: feeds[name] for name in self.inputs if name in feeds})

    def run_values(self, feeds: Mapping[str, Value], outputs: Sequence[str]) -> dict[str, Value]:
        """Evaluate as `run` does, from values to values: an output may be an input of the next run without a copy."""
        with self._running():
            made = self._session.run_with_ort_values(list(outputs), feeds)
        return dict(zip(outputs, made, strict=True))

    @contextlib.contextmanager
    def _running(self) -> Generator[None]:
        try:
            with contextlib.nullcontext() if self._window is None else self._window.kept():
                yield
        except Exception as error:  # onnxruntime has one exception class per status
            raise BundleError(
                f"{self._path}: ONNX Runtime {ort.__version__} cannot run it: {_first_line(error)}; an input is out of "
                "range, or the bundle is damaged"
            ) from error

    def rest(self) -> None:
        """Between runs of this graph: keep resident no more of the weights than a run reads."""
        if not self._reads_alike:
            self.give_back_pages()

    def give_back_pages(self) -> None:
        """Let go of the weights' pages that were read; the next run brings in those that it reads."""
        give_back(self._mapped)


class _Bound:
    """What a session's runs read and write, as it is bound to one set of places."""

    def __init__(self, session: Any, places: Places) -> None:
        self._session, self._binding, self._staying = session, session.io_binding(), places.staying
        self._stayed: dict[str, np.ndarray] = {}
        self._names: set[str] = set()
        for name, array in places.outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self, feeds: Mapping[str, np.ndarray | Value]) -> None:
        if set(feeds) != self._names:  # what is missing is not taken from the run before
            self._binding.clear_binding_inputs()
            self._stayed.clear()
            self._names = set(feeds)
        passing = {name: fed for name, fed in feeds.items() if self._stayed.get(name) is not fed}
        values = {name: fed if isinstance(fed, ort.OrtValue) else value_of(fed) for name, fed in passing.items()}
        try:
            for name, value in values.items():
                self._binding.bind_ortvalue_input(name, value)
                self._note(name, passing[name])
            self._session.run_with_iobinding(self._binding)
        finally:
            for name in passing:
                if name not in self._stayed:
                    self._binding.bind_ortvalue_input(name, _NOTHING)

    def _note(self, name: str, fed: np.ndarray | Value) -> None:
        """Whether what is bound now stays for the runs to come: not where they would read a copy of it."""
        self._stayed.pop(name, None)
        if name in self._staying and isinstance(fed, np.ndarray) and fed.flags.c_contiguous:
            self._stayed[name] = fed


def value_of(array: np.ndarray) -> Value:
    """The array as a value, which shares its memory."""
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


_NOTHING: Value = value_of(np.zeros(0, np.float32))  # bound where an array was that is let go


def values_of(feeds: Feeds, graph: Graph) -> dict[str, Value]:
    """What the graph takes of these arrays, as values."""
    return {name: value_of(feeds[name]) for name in graph.inputs if name in feeds}


@dataclass(frozen=True)
class NodeRun:
    """A node as ONNX Runtime ran it: the shapes of its inputs and outputs, without what was packed beforehand."""

    op: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


def profile(path: Path, settings: SessionSettings, feeds: Feeds) -> list[NodeRun]:
    """The nodes of one run, as ONNX Runtime's profile tells them.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """
    with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
        options = _options(settings)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = _session(path, options)
        session.run(None, {x.name: np.asarray(feeds[x.name]) for x in session.get_inputs()})
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))

    def shapes(typed: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(shape) for one in typed for shape in one.values())

    nodes = [event["args"] for event in events if str(event.get("name")).endswith("_kernel_time")]
    return [NodeRun(n["op_name"], shapes(n["input_type_shape"]), shapes(n["output_type_shape"])) for n in nodes]


def _options(settings: SessionSettings) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # patterns hold the sum of all shapes seen; sizes vary here
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(awake := _stay_awake(settings))))
    if awake:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(AWAKE))
    if settings.threads is not None or settings.cores < (os.cpu_count() or 1):
        options.intra_op_num_threads = settings.cores
    # A masked score's exponential is below float32's least normal number: slow, and next to nothing (0048).
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    keep_exact(options)
    if settings.low_memory:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _stay_awake(settings: SessionSettings) -> bool:
    """Whether threads that wait do so awake: unless it is said, where that takes no core from the app beside us."""
    if settings.spinning is not None:
        return settings.spinning
    if settings.cores == 1 or tuple(int(part) for part in ENGINE_VERSION.split(".")[:2]) < _BOUNDED_FROM:
        return False
    free = free_cores()
    return free is not None and free >= settings.cores - 1


def _session(path: Path, options: Any) -> Any:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has one exception class per status
        raise BundleError(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)
