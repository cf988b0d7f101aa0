"""How many cores are free beside what else this device does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.neighbours import free_cores
from tests.device.busy import CORES, busy


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="the system does not tell")
def test_none_is_free_where_each_has_a_program():
    with busy(CORES):
        assert free_cores() == 0


@given(runnable=st.integers(1, 1000))
def test_the_one_that_asks_is_not_counted(runnable, tmp_path_factory):
    load = tmp_path_factory.mktemp("proc") / "loadavg"
    load.write_text(f"0.20 0.18 0.12 {runnable}/80 11206\n")
    assert free_cores(load) == max(0, CORES - runnable)


@pytest.mark.parametrize("text", ["", "0.20 0.18 0.12", "0.20 0.18 0.12 many/80 1"])
def test_what_is_not_understood_tells_nothing(text, tmp_path):
    (tmp_path / "loadavg").write_text(text)
    assert free_cores(tmp_path / "loadavg") is None
    assert free_cores(tmp_path / "missing") is None
