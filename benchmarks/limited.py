"""A contender under a hard limit of memory: does its run complete?

A memory group of control groups version 1 where one may be made (it counts pages of files as well, which the
kernel drops before it kills), else RLIMIT_DATA, which refuses private memory beyond the limit.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import BenchmarkError, Contender, Process

GROUPS = Path("/sys/fs/cgroup/memory")
MIB = 1 << 20


@dataclass(frozen=True)
class Limit:
    """`enter` puts the process that calls it under the limit; `peak` reads the limit's own counter, in bytes."""

    kind: str
    enter: Callable[[], None]
    peak: Callable[[], int | None] = field(default=lambda: None)


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[Limit]:
    """A limit of `size` bytes, removed at the end."""
    group = GROUPS / f"edgelora-benchmark-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(size))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield Limit("RLIMIT_DATA", lambda: resource.setrlimit(resource.RLIMIT_DATA, (size, size)))
        return
    with contextlib.suppress(OSError):
        (group / "memory.swappiness").write_text("0")
    try:
        yield Limit(
            "memory cgroup",
            lambda: _write(group / "cgroup.procs", os.getpid()),
            lambda: int((group / "memory.max_usage_in_bytes").read_text()),
        )
    finally:
        group.rmdir()


def _write(path: Path, value: int) -> None:
    path.write_text(str(value))


def run_limited(contender: Contender, job: Path, result: Path, threads: int, megabytes: int) -> dict[str, Any]:
    """Run it alone under the limit: whether it completed, by which limit, and the peaks."""
    with memory_limit(megabytes * MIB) as limit:
        process = Process(contender, job, result, threads, keep_errors=True, on_start=limit.enter)
        body: dict[str, Any] = {"contender": contender.title, "limit_mb": megabytes, "kind": limit.kind}
        try:
            while process.finish_turn():
                process.give_turn()
            run = process.read().result
            body |= {"completed": True, "steps": len(run["losses"]), "peak_memory_mb": run["peak_memory_mb"]}
        except (BenchmarkError, OSError) as error:
            body |= {"completed": False, "reason": str(error)}
        finally:
            process.close()
        peak = limit.peak()
    return body | {"limit_peak_mb": None if peak is None else peak / MIB}
