"""Items on several threads: their sum, and what happens to an error."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.at_once import sum_at_once


@given(st.lists(st.integers(-(10**6), 10**6).map(float), max_size=12), st.integers(0, 3), st.booleans())
def test_the_sum_is_that_of_one_thread(values: list[float], helpers: int, awake: bool):
    with ThreadPoolExecutor(max(1, helpers)) as pool:
        assert sum_at_once(float, ((x,) for x in values), pool, helpers, awake) == sum(values)


def test_two_threads_run_two_items_at_once():
    """Each waits for the other, which would never come if one thread ran both."""
    together = threading.Barrier(2, timeout=20)

    def run(value: float) -> float:
        together.wait()
        return value

    with ThreadPoolExecutor(1) as pool:
        assert sum_at_once(run, iter([(1.0,), (2.0,)]), pool, helpers=1) == 3.0


@pytest.mark.parametrize("awake", [False, True])
@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_is_raised_when_no_thread_runs_any_more(awake: bool, bad: int):
    """Whichever thread it befalls."""
    together, ended = threading.Barrier(2, timeout=20), threading.Event()

    def run(place: int) -> float:
        together.wait()
        if place == bad:
            raise ValueError("bad")
        time.sleep(0.05)
        ended.set()
        return 1.0

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="bad"):
            sum_at_once(run, iter([(0,), (1,)]), pool, helpers=1, awake=awake)
        assert ended.is_set()


def test_an_item_that_cannot_be_made_ends_the_work():
    def items():
        yield (1.0,)
        raise OSError("no more")

    with ThreadPoolExecutor(1) as pool, pytest.raises(OSError, match="no more"):
        sum_at_once(float, items(), pool, helpers=1)
