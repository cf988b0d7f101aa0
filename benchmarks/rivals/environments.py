"""Virtual environments of rivals that cannot live in ours: the packages that are named, within a limit of time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import ROOT, process_environment
from benchmarks.rivals.base import Unavailable
from edgelora_tools.recipes import cache_folder

LIMIT_SECONDS, TELL_SECONDS = 900.0, 15.0
PIP = ("-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--only-binary=:all:", "--progress-bar=off")
Progress = Callable[[str], None]


def environment(name: str, packages: Sequence[str], progress: Progress, limit: float = LIMIT_SECONDS) -> str:
    """The interpreter of a virtual environment with these packages and no others, made in the cache when not there.

    What a package needs is named as well: nothing is resolved. What was installed before a limit was reached stays,
    and the next call goes on from there.

    Raises:
        Unavailable: it could not be made within `limit` seconds, or pip refused; its last line is given.
    """
    folder = cache_folder() / "benchmarks" / "environments" / name
    python, stamp = folder / "bin" / "python", folder / "packages.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8").split() == list(packages):
        return str(python)
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + limit
    for command in ([sys.executable, "-m", "venv", str(folder)], [str(python), *PIP, *packages]):
        _run(command, folder / "install.log", f"environment for {name}", until, progress)
    stamp.write_text("\n".join(packages), encoding="utf-8")
    return str(python)


def run_module(python: str, module: str, *arguments: str, threads: int, progress: Progress, log: Path) -> None:
    """Run a module of ours in another environment; `log` takes what it writes.

    Raises:
        Unavailable: it failed, or took longer than the limit; its last line is given.
    """
    until = time.monotonic() + LIMIT_SECONDS
    _run([python, "-m", module, *arguments], log, module.rpartition(".")[2], until, progress, threads)


def _run(
    command: Sequence[str], log: Path, what: str, until: float, progress: Progress, threads: int | None = None
) -> None:
    """Run a command, telling its last line from time to time."""
    begun = time.monotonic()
    surroundings = None if threads is None else process_environment(threads)
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=surroundings, cwd=ROOT)
        try:
            while (left := until - time.monotonic()) > 0:
                try:
                    process.wait(min(left, TELL_SECONDS))
                    break
                except subprocess.TimeoutExpired:
                    progress(f"{what}: {time.monotonic() - begun:.0f} s, {last_line(log)}")
            else:
                raise Unavailable(f"{what}: not done after {time.monotonic() - begun:.0f} s, at: {last_line(log)}")
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise Unavailable(f"{what}: {last_line(log) or f'exit status {process.returncode}'}")


def last_line(log: Path) -> str:
    """The last line that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""
