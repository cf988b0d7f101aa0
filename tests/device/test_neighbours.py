"""How many cores are free beside what else this device does."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from statistics import median_low

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.neighbours import _runnable, free_cores  # pyright: ignore[reportPrivateUsage]
from tests.device.busy import CORES, busy


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="the system does not tell")
def test_none_is_free_where_each_has_a_program():
    with busy(CORES):
        assert free_cores() == 0


@given(others=st.integers(0, 1000), own=st.lists(st.sampled_from("RSD"), min_size=1, max_size=5))
def test_this_process_is_not_counted(others, own, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proc")
    (folder / "loadavg").write_text(f"0.20 0.18 0.12 {others + own.count('R')}/80 11206\n")
    for number, state in enumerate(own):
        (folder / "task" / str(number)).mkdir(parents=True)
        (folder / "task" / str(number) / "stat").write_text(f"{number} (a) R (b) {state} 1 1 1 0 -1\n")
    (folder / "task" / "ended").mkdir()
    assert free_cores(folder / "loadavg", folder / "task") == max(0, CORES - 1 - others)


@pytest.mark.parametrize("text", ["", "0.20 0.18 0.12", "0.20 0.18 0.12 many/80 1"])
def test_what_is_not_understood_tells_nothing(text, tmp_path):
    (tmp_path / "loadavg").write_text(text)
    assert free_cores(tmp_path / "loadavg") is None
    assert free_cores(tmp_path / "missing") is None
    assert free_cores(own=tmp_path / "missing") is None


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="the system does not tell")
def test_threads_of_this_process_that_compute_are_known():
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            hashlib.sha256(bytes(1 << 20)).digest()

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        states = [_runnable(Path("/proc/self/task")) for _ in range(50)]
    finally:
        stop.set()
        thread.join()
    assert median_low(states) >= 2
