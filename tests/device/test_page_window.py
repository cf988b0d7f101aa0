"""Weights that pass through a window: the peak of a fresh process is bounded, results are the same to the last bit."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelora import page_window
from edgelora.errors import ConfigError
from edgelora.mapped_pages import Range, give_back
from edgelora.memory import resident_files
from edgelora.page_window import PageWindow
from edgelora.session import SessionSettings
from tests.convert.bundles import to_bundle
from tests.convert.networks import tower
from tests.device.tiny import start_python

WIDTH, DEPTH, BATCH, WINDOW = 1024, 12, 256, 8_000_000
WEIGHTS = DEPTH * WIDTH**2 * 4

RUN = """
import json, sys
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.memory import peak_memory
from edgelora.memory_plan import follow, plan_memory
from edgelora.objectives import Regression
from edgelora.session import SessionSettings
from edgelora.tasks import ArrayInputs
from edgelora.trainer import Trainer
from edgelora.training_config import TrainingConfig

path, width, batch, window, budget, callers = sys.argv[1], *map(int, sys.argv[2:])
rng = np.random.default_rng(0)
bundle = Bundle.open(path, SessionSettings(low_memory=True, window=window or None))
adapter = new_adapter(bundle.manifest, LoraConfig(r=4, lora_alpha=4), None, outputs=2, rng=rng)
x = rng.standard_normal((batch, width), np.float32)
objective = Regression(ArrayInputs({"x": x}), rng.standard_normal((batch, 2), np.float32))
config = TrainingConfig(batch_size=batch, micro_batch_size=batch, learning_rate=1e-4, max_grad_norm=0.0)
trainer, plan = Trainer(bundle, adapter, objective, config), None
if budget:
    plan = plan_memory(trainer, None, budget)
    follow(plan, trainer)
loss = [trainer.step(np.arange(batch)).loss for _ in range(3)]
if callers:
    feeds = {"x": x, **bundle.feeds(trainer.current())}
    with ThreadPoolExecutor(callers) as pool:
        made = list(pool.map(lambda _: bundle.forward.run(feeds), range(3 * callers)))
    for one in made:
        for name, y in one.items():
            np.testing.assert_array_equal(y, made[0][name])
print(json.dumps({"peak": peak_memory(), "plan": plan and plan.to_dict(), "loss": loss}))
"""


@pytest.fixture(scope="module")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 MB of weights."""
    model = tower(WIDTH, DEPTH)
    return to_bundle(model, tmp_path_factory.mktemp("wide"), task="regression", pooling="pooler").path


def measured(bundle: Path, window: int, budget: int = 0, callers: int = 0) -> dict[str, Any]:
    process = start_python("-c", RUN, bundle, *map(str, (WIDTH, BATCH, window, budget, callers)))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_the_peak_is_without_the_weights_that_are_not_in_the_window(wide_bundle: Path):
    plain, windowed = measured(wide_bundle, 0), measured(wide_bundle, WINDOW, callers=2)
    assert windowed["loss"] == plain["loss"]
    saved = plain["peak"] - windowed["peak"]
    assert saved > 0.6 * (WEIGHTS - WINDOW)
    planned = measured(wide_bundle, 0, budget=plain["peak"] - 15_000_000)
    assert planned["plan"]["window"] is not None
    assert not planned["plan"]["prepacked"]
    assert 0.9 < planned["peak"] / planned["plan"]["predicted"] < 1.1
    assert planned["loss"] == plain["loss"]


@pytest.fixture
def weights(tmp_path: Path) -> np.ndarray:
    """64 MB of a file, mapped."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(64_000_000))
    return np.memmap(file, np.int64, "r")


def window_of(weights: np.ndarray) -> PageWindow:
    begin = weights.ctypes.data
    return PageWindow([(begin, begin + weights.nbytes)], WINDOW)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_what_is_read_while_pages_go_is_not_taken_for_code(weights: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    """The watcher's thread may have to wait for a core between letting go and counting, while another reads."""
    times, window, before = itertools.count(), window_of(weights), resident_files()

    def late(ranges: Sequence[Range]) -> None:
        give_back(ranges)
        if next(times) % 2:
            weights[:5_000_000].sum()

    monkeypatch.setattr(page_window, "give_back", late)
    for _ in range(12):
        window._let_go()  # pyright: ignore[reportPrivateUsage]
        assert min(window._others) < before + 2_000_000  # pyright: ignore[reportPrivateUsage]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_code_that_comes_back_leaves_the_window_as_it_was(weights: np.ndarray):
    """The system takes libraries' code where memory is short, and it is read again: the window is no smaller then."""
    window, before = window_of(weights), resident_files()
    window._others.append(before - 30_000_000)  # pyright: ignore[reportPrivateUsage]
    for _ in range(8):
        window._let_go()  # pyright: ignore[reportPrivateUsage]
    assert min(window._others) > before - 2_000_000  # pyright: ignore[reportPrivateUsage]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_what_is_read_at_once_has_room(weights: np.ndarray):
    """Rows of a token table bring in megabytes before anything can be counted: they are within the window too."""
    window, most, count = window_of(weights), 0, len(weights)
    piece, leap = count // 640, count // 20  # 0.1 and 3.2 MB
    with window.kept():
        others = min(window._others)  # pyright: ignore[reportPrivateUsage]
        for begin in range(0, count - leap, 62 * piece):
            for start in range(begin, begin + 30 * piece, piece):
                weights[start : start + piece].sum()
                time.sleep(0.006)  # three times as long as until the next count
            weights[begin + 30 * piece : begin + 30 * piece + leap].sum()
            most = max(most, resident_files() - others)
            time.sleep(0.02)
    assert most < WINDOW + 1_000_000


def test_a_window_that_holds_everything_starts_no_thread():
    window = PageWindow([(0, 4096)], 4096)
    with window.kept():
        assert window._watcher is None  # pyright: ignore[reportPrivateUsage]


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one byte"):
        SessionSettings(window=0)


def test_an_error_ends_the_watch():
    window = PageWindow([], -1)
    with pytest.raises(ValueError, match="inside"), window.kept():
        raise ValueError("inside")
    assert window._watcher is None  # pyright: ignore[reportPrivateUsage]


def test_a_window_is_kept_again_after_a_thread_could_not_be_started(monkeypatch: pytest.MonkeyPatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    window = PageWindow([], -1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"), window.kept():
            pass
    with window.kept():
        assert window._watcher is not None  # pyright: ignore[reportPrivateUsage]
    assert window._watcher is None  # pyright: ignore[reportPrivateUsage]
