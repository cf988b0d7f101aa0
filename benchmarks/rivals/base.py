"""What a rival is: a worker of the shared protocol, and a preparation that may find that it cannot run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Contender

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
