"""Programs that want the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CORES = os.cpu_count() or 1


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many programs that compute, as long as it lasts."""
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(programs)]
    try:
        for program in running:
            assert program.stdout is not None and program.stdout.readline()
        yield
    finally:
        for program in running:
            program.kill()
            program.communicate()
