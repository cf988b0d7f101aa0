"""How many cores are free now: those that no other thread of this device runs on or waits for, as Linux tells."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from statistics import median_low

_LOAD, _OWN = Path("/proc/loadavg"), Path("/proc/self/task")
_READINGS, _APART = 5, 0.001  # seconds: a thread that works for a moment is not meant


def free_cores(load: Path = _LOAD, own: Path = _OWN) -> int | None:
    """Cores beside the one that asks; None where the system does not tell.

    `load` is proc_loadavg(5), whose fourth field has the threads that run or want to, "RUNNABLE/ALL"; those of this
    process, as the one that still reads a bundle's files to prove them, are none of others: `own`, proc_pid_task(5).
    """
    others: list[int] = []
    try:
        for _ in range(_READINGS):
            runnable = int(load.read_text().split()[3].split("/")[0])
            others.append(runnable - _runnable(own))
            time.sleep(_APART)
    except (OSError, ValueError, IndexError):
        return None
    return max(0, (os.cpu_count() or 1) - 1 - max(0, median_low(others)))


def _runnable(own: Path) -> int:
    """Threads of a process that run or want to: those in state R (proc_pid_stat(5), behind the name in brackets)."""
    count = 0
    for thread in own.iterdir():
        with contextlib.suppress(OSError):  # it has ended since
            count += (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    return count
