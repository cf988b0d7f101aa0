"""How many cores this process may use: those it is bound to, within its control group's share of time."""

from __future__ import annotations

import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_cores(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """At least one. `groups` and `own` are where Linux tells of control groups, of version 2 or 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *(math.ceil(share) for share in _shares(groups, own))]))


def _shares(groups: Path, own: Path) -> list[float]:
    """Cores' worth of time that the process's group and each group around it may take, where one is limited."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found: list[float] = []
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0" and not controllers:
            folder = groups
        elif "cpu" in controllers.split(","):
            folder = groups / "cpu"
        else:
            continue
        parts = Path(name.lstrip("/")).parts
        found += [s for depth in range(len(parts) + 1) if (s := _share(folder.joinpath(*parts[:depth]))) is not None]
    return found


def _share(group: Path) -> float | None:
    """Its quota over its period (cgroups(7): cpu.max "QUOTA PERIOD" or "max PERIOD"); None where there is none."""
    try:
        if (limit := group / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
