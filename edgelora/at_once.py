"""Work on all cores at once, the calling thread's among them. ONNX Runtime lets go of the interpreter while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock

from edgelora.session import AWAKE


def sum_at_once(
    run: Callable[..., float],
    work: Iterator[tuple[object, ...]],
    pool: ThreadPoolExecutor,
    helpers: int,
    awake: bool = True,
) -> float:
    """The sum of what `run` makes of each item, in their order, by this thread and so many of the pool's.

    An item is made when a thread is free for it, while others run. With `awake`, this thread waits for the last one
    awake, for a moment. An error is raised when no thread runs any more.
    """
    made: list[float] = []
    one_at_a_time = Lock()

    def take() -> tuple[int, tuple[object, ...] | None]:
        with one_at_a_time:
            made.append(0.0)
            return len(made) - 1, next(work, None)

    def go_on(place: int, one: tuple[object, ...] | None) -> None:
        while one is not None:
            made[place] = run(*one)
            place, one = take()

    begun: list[Future[None]] = []
    try:
        while len(begun) < helpers:
            begun.append(pool.submit(go_on, *take()))
        go_on(*take())
    finally:
        if awake:
            _watch(begun)
        wait(begun)  # they write to the same results
    for helper in begun:
        helper.result()
    return sum(made)


def _watch(begun: Sequence[Future[None]]) -> None:
    """Wait for all of them, but a moment at most, without being put to sleep."""
    end = time.perf_counter() + AWAKE * 1e-6
    while not all(one.done() for one in begun) and time.perf_counter() < end:
        time.sleep(0)  # lets go of the interpreter, which they need to end
