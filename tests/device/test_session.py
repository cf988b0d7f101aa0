"""How a session is set up: what each setting changes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgelora import session
from edgelora.bundle import Bundle
from edgelora.session import SessionSettings
from tests.device.busy import CORES, busy


def options_of(bundle: Path, settings: SessionSettings) -> Any:
    return Bundle.open(bundle, settings).forward._session.get_session_options()  # pyright: ignore[reportPrivateUsage]


def test_low_memory_gives_up_prepacking_and_keeps_the_arena(bundle: Path):
    """Without memory patterns the arena holds less than malloc: 221 against 353 MB for a step of 8 × 128 tokens."""
    options = options_of(bundle, SessionSettings(low_memory=True))
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.enable_cpu_mem_arena


def test_default_prepacks(bundle: Path):
    with pytest.raises(RuntimeError):  # the entry is not set
        options_of(bundle, SessionSettings()).get_session_config_entry("session.disable_prepacking")


def test_threads(bundle: Path):
    assert options_of(bundle, SessionSettings(threads=1)).intra_op_num_threads == 1


def is_awake(bundle: Path, settings: SessionSettings) -> bool:
    return options_of(bundle, settings).get_session_config_entry("session.intra_op.allow_spinning") == "1"


def test_threads_that_stay_awake_do_so_for_a_moment(bundle: Path):
    """And not for the milliseconds, up to 47, that ONNX Runtime gives them."""
    options = options_of(bundle, SessionSettings(threads=2, spinning=True))
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert int(options.get_session_config_entry("session.intra_op.spin_duration_us")) < 1000


def test_threads_sleep_where_they_are_told_to(bundle: Path):
    assert not is_awake(bundle, SessionSettings(threads=2, spinning=False))


def test_threads_sleep_beside_programs_that_want_the_cores(bundle: Path):
    """A step of 2 threads beside two such programs takes 1.46 of the time where they stay awake."""
    with busy(CORES):
        assert not is_awake(bundle, SessionSettings(threads=2))


@pytest.mark.parametrize(("free", "awake"), [(None, False), (0, False), (1, False), (2, True), (7, True)])
def test_threads_stay_awake_where_there_is_a_free_core_for_each(bundle: Path, monkeypatch, free, awake):
    """One of the three has the core of who asks."""
    monkeypatch.setattr(session, "free_cores", lambda: free)
    assert is_awake(bundle, SessionSettings(threads=3)) == awake


def test_threads_sleep_where_the_engine_knows_no_moment(bundle: Path, monkeypatch):
    monkeypatch.setattr(session, "free_cores", lambda: 7)
    monkeypatch.setattr(session, "ENGINE_VERSION", "1.25.1")
    assert not is_awake(bundle, SessionSettings(threads=2))


def test_one_thread_waits_for_none(bundle: Path):
    assert not is_awake(bundle, SessionSettings(threads=1))


def test_numbers_below_the_least_normal_are_zero(bundle: Path):
    """Softmax over a causal mask takes six times as long where exponentials of masked scores are such numbers."""
    options = options_of(bundle, SessionSettings())
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
