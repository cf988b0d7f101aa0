"""How a session is set up: what each setting changes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgelora.bundle import Bundle
from edgelora.session import SessionSettings


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


def test_waiting_threads_sleep(bundle: Path):
    """A training step of 2 threads on 2 shared cores: 0.76 of the time, 0.70 of the CPU time."""
    options = options_of(bundle, SessionSettings())
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_threads_that_stay_awake_do_so_for_a_moment(bundle: Path):
    """And not for the milliseconds, up to 47, that ONNX Runtime gives them."""
    options = options_of(bundle, SessionSettings(spinning=True))
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert int(options.get_session_config_entry("session.intra_op.spin_duration_us")) < 1000


def test_numbers_below_the_least_normal_are_zero(bundle: Path):
    """Softmax over a causal mask takes six times as long where exponentials of masked scores are such numbers."""
    options = options_of(bundle, SessionSettings())
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
