"""How many cores are free now: those that no other thread of this device runs on or waits for, as Linux tells."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median_low

_LOAD = Path("/proc/loadavg")
_READINGS, _APART = 5, 0.001  # seconds: a thread that works for a moment is not meant


def free_cores(load: Path = _LOAD) -> int | None:
    """Cores beside the one that asks; None where the system does not tell.

    `load` is proc_loadavg(5), whose fourth field has the threads that run or want to, this one too: "RUNNABLE/ALL".
    """
    runnable: list[int] = []
    try:
        for _ in range(_READINGS):
            runnable.append(int(load.read_text().split()[3].split("/")[0]))
            time.sleep(_APART)
    except (OSError, ValueError, IndexError):
        return None
    return max(0, (os.cpu_count() or 1) - max(1, median_low(runnable)))
