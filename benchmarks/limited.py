"""A contender under a hard limit of memory: does its run complete?

A memory group of control groups version 1 where one may be made (it counts pages of files as well, which the
kernel drops before it kills), else RLIMIT_DATA, which refuses private memory beyond the limit.

A page of a file counts in the group that read it first. So the files that a contender reads are let out of the system's
cache before it starts: its own reading of them then counts. Libraries' code, which others hold too, does not.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import BenchmarkError, Contender, Process

GROUPS = Path("/sys/fs/cgroup/memory")
MIB = 1 << 20
PATIENCE = 900.0


@dataclass(frozen=True)
class Limit:
    """`enter` puts the process that calls it under the limit; `counters` reads what the limit itself counted.

    `limit_peak_mb` is the most that was held, `limit_hits` how often more was wanted and pages had to go first,
    `limit_files_mb` what is held of files at the end, `limit_kills` how many processes were ended.
    """

    kind: str
    enter: Callable[[], None]
    counters: Callable[[], dict[str, float]] = field(default=dict)


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
        yield Limit("memory cgroup", lambda: _write(group / "cgroup.procs", os.getpid()), lambda: _counters(group))
    finally:
        group.rmdir()


def _counters(group: Path) -> dict[str, float]:
    def number(file: str, key: str) -> int:
        lines = (line.split() for line in (group / file).read_text().splitlines())
        return next(int(line[1]) for line in lines if line[0] == key)

    return {
        "limit_peak_mb": int((group / "memory.max_usage_in_bytes").read_text()) / MIB,
        "limit_hits": int((group / "memory.failcnt").read_text()),
        "limit_files_mb": number("memory.stat", "cache") / MIB,
        "limit_kills": number("memory.oom_control", "oom_kill"),
    }


def _write(path: Path, value: int) -> None:
    path.write_text(str(value))


def let_go(files: Iterable[Path]) -> None:
    """Leave nothing of the files in the system's cache, as far as no process has them mapped (Linux)."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_limited(
    contender: Contender,
    job: Path,
    result: Path,
    threads: int,
    megabytes: int,
    files: Iterable[Path] = (),
    patience: float = PATIENCE,
) -> dict[str, Any]:
    """Run it alone under the limit: whether it completed, by which limit, and the peaks.

    The `files` are those whose pages it must read itself. One that does little else than to read them again is ended
    after `patience` seconds.
    """
    with memory_limit(megabytes * MIB) as limit:
        let_go(files)
        process = Process(contender, job, result, threads, keep_errors=True, on_start=limit.enter)
        body: dict[str, Any] = {"contender": contender.title, "limit_mb": megabytes, "kind": limit.kind}
        late = threading.Timer(patience, process.end)
        late.start()
        try:
            while process.finish_turn():
                process.give_turn()
            run = process.read().result
            body |= {"completed": True, "steps": len(run["losses"]), "peak_memory_mb": run["peak_memory_mb"]}
            body["step_seconds"] = sorted(run["step_seconds"])[len(run["losses"]) // 2]
        except (BenchmarkError, OSError) as error:
            reason = str(error) if late.is_alive() else f"not done within {patience:g} seconds"
            body |= {"completed": False, "reason": reason}
        finally:
            late.cancel()
            process.close()
        return {"limit_peak_mb": None} | body | limit.counters()
