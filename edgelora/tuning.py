"""Which settings would be best on this device: each is tried in a process of its own, within a limit of time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

from edgelora.cores import available_cores
from edgelora.errors import EdgeLoraError
from edgelora.session import SessionSettings

_NOISE = 1.03  # a step must be so much quicker to count as quicker: otherwise the usual settings stay
_CLOSE, _TRIALS = 1.2, 3
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """Settings to try: those of the sessions, and how many rows of a batch run at once."""

    threads: int
    low_memory: bool = False
    spinning: bool | None = None
    window: int | None = None
    micro_batch_size: int | None = None

    @classmethod
    def of(cls, settings: SessionSettings) -> Trial:
        """These settings, and whole batches."""
        return cls(settings.cores, settings.low_memory, settings.spinning, settings.window)

    @property
    def settings(self) -> SessionSettings:
        return SessionSettings(self.threads, self.low_memory, self.spinning, self.window)

    @property
    def options(self) -> str:
        """As the command line takes them."""
        parts = [f"--threads {self.threads}"]
        parts += ["--low-memory"] if self.low_memory else []
        parts += [f"--window {self.window}"] if self.window is not None else []
        parts += [] if self.spinning is None else ["--spinning" if self.spinning else "--no-spinning"]
        parts += [f"--micro-batch-size {self.micro_batch_size}"] if self.micro_batch_size is not None else []
        return " ".join(parts)


@dataclass(frozen=True)
class Outcome:
    """What a trial took: from the start of the process to the end of its first step, a later step, the peak."""

    trial: Trial
    cold_start_ms: float
    step_ms: float
    peak_memory_mb: float | None


def tune(
    path: Path,
    settings: SessionSettings,
    batch_size: int,
    length: int,
    rank: int,
    seconds: float,
    progress: Progress = lambda _: None,
) -> list[Outcome]:
    """Try thread counts, then, with the best, spinning, prepacking and parts of a batch; until `seconds` are over.

    The first trial is always made: these settings. In the time that is left, those that are close to the best are
    tried again in turn; an outcome is the median of a trial's.

    Raises:
        EdgeLoraError: the bundle cannot be run in a process of its own.
    """
    cores = available_cores()
    made: dict[Trial, list[Outcome]] = {}
    tried: list[Outcome] = []
    until = time.monotonic() + seconds

    def attempt(trial: Trial, times: int = 1) -> None:
        if len(made.get(trial, ())) >= times or (made and time.monotonic() > until):
            return
        progress(f"trying {trial.options}")
        made.setdefault(trial, []).append(_measure(path, trial, batch_size, length, rank))
        tried[:] = [_median(outcomes) for outcomes in made.values()]

    attempt(Trial.of(settings))
    for threads in sorted({cores, *(2**i for i in range(cores.bit_length()) if 2**i < cores)}, reverse=True):
        attempt(Trial(threads))
    for spinning in (True, False):
        attempt(replace(fastest(tried).trial, spinning=spinning))
    attempt(replace(fastest(tried).trial, low_memory=True))
    size = batch_size // 2
    while size >= 1:
        attempt(replace(fastest(tried).trial, micro_batch_size=size, low_memory=False))
        attempt(replace(fastest(tried).trial, micro_batch_size=size, low_memory=True))
        size //= 2
    for times in range(2, _TRIALS + 1):
        close = [o.trial for o in tried if o.step_ms <= _CLOSE * fastest(tried).step_ms]
        for trial in close:
            attempt(trial, times)
    return tried


def _median(outcomes: list[Outcome]) -> Outcome:
    """One outcome of several of the same trial."""
    peaks = [o.peak_memory_mb for o in outcomes if o.peak_memory_mb is not None]
    return Outcome(
        outcomes[0].trial,
        median(o.cold_start_ms for o in outcomes),
        median(o.step_ms for o in outcomes),
        median(peaks) if peaks else None,
    )


def fastest(outcomes: list[Outcome]) -> Outcome:
    """The shortest step; of those that differ by noise alone, the one that was tried first, the most usual."""
    shortest = min(o.step_ms for o in outcomes)
    return next(o for o in outcomes if o.step_ms <= _NOISE * shortest)


def smallest(outcomes: list[Outcome]) -> Outcome | None:
    """The least memory, if the system tells."""
    return min((o for o in outcomes if o.peak_memory_mb is not None), key=lambda o: o.peak_memory_mb or 0, default=None)


def advice(outcomes: list[Outcome]) -> list[str]:
    """The recommendation, a line each."""
    quick, small = fastest(outcomes), smallest(outcomes)
    lines = [f"fastest: {quick.step_ms:.1f} ms a step: {quick.trial.options}"]
    if small is not None:
        lines.append(
            f"least memory: {small.peak_memory_mb:.0f} MB, {small.step_ms:.1f} ms a step: {small.trial.options}"
        )
    return lines


def _measure(path: Path, trial: Trial, batch_size: int, length: int, rank: int) -> Outcome:
    asked = {
        "path": str(path),
        "settings": asdict(trial.settings),
        "micro_batch_size": trial.micro_batch_size,
        "batch_size": batch_size,
        "length": length,
        "rank": rank,
        "started": time.time(),
    }
    command = [sys.executable, "-m", "edgelora.trial", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgeLoraError(f"{path}: the process that tries {trial.options} failed: {reason}")
    body = cast("Mapping[str, Any]", json.loads(done.stdout))
    return Outcome(trial, body["cold_start_ms"], body["step_ms"], body["peak_memory_mb"])
