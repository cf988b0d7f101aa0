"""What a rival is: a worker of the shared protocol, and a preparation that may find that it cannot run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Contender, process_environment
from edgelora_tools.recipes import cache_folder

Progress = Callable[[str], None]


class Unavailable(Exception):
    """The rival cannot run here, or cannot do this; the message says why, and becomes its row."""


@dataclass(frozen=True)
class Place:
    """Where a rival is prepared: our plain bundle, the job that it will run, a folder of its own."""

    bundle: Path
    job: Path
    folder: Path
    threads: int
    progress: Progress


@dataclass(frozen=True)
class Preparation:
    """What a preparation adds to the worker: options, an interpreter."""

    options: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None


def nothing(place: Place) -> Preparation:
    """No preparation."""
    return Preparation()


@dataclass(frozen=True)
class Rival:
    """`family` "peft" marks the variants of which the best is what we are compared with.

    `prepare` raises `Unavailable` where it cannot run.
    """

    name: str
    title: str
    worker: str
    family: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Place], Preparation] = nothing

    def contender(self, place: Place, job: str, suffix: str = "", **more: Any) -> Contender:
        """Who runs it on the job of that name.

        Raises:
            Unavailable: it cannot run; the message says why.
        """
        made = self.prepare(place)
        options = {**self.options, **made.options, **more}
        return Contender(f"{self.name}{suffix}", self.title, self.worker, options, made.python, job)


def environment(name: str, packages: tuple[str, ...], progress: Progress) -> str:
    """The interpreter of a virtual environment with these packages, made in the cache when it is not there.

    Raises:
        Unavailable: pip could not install them; its last line is given.
    """
    folder = cache_folder() / "benchmarks" / "environments" / name
    python, stamp = folder / "bin" / "python", folder / "packages.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8").split() == list(packages):
        return str(python)
    progress(f"making an environment for {name}")
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unavailable(f"{name}: {last_line(done.stderr)}")
    stamp.write_text("\n".join(packages), encoding="utf-8")
    return str(python)


def run_module(python: str, module: str, *arguments: str, threads: int) -> None:
    """Run a module of ours in another environment.

    Raises:
        Unavailable: it failed; its last line is given.
    """
    command = [python, "-m", module, *arguments]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env=process_environment(threads)
    )
    if done.returncode:
        raise Unavailable(last_line(done.stderr) or f"exit status {done.returncode}")


def last_line(text: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
