"""Run contenders in turn, each measurement in a fresh process, and take medians of what came out."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.job import GRADIENTS_FILE, RESULT_FILE

ROOT = Path(__file__).resolve().parents[1]
ERRORS_FILE = "errors.txt"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class BenchmarkError(Exception):
    """Something that a benchmark needs is missing, or a contender failed; the message says which."""


@dataclass(frozen=True)
class Contender:
    """Who is measured: `worker` is a module run as `python -m worker JOB RESULT STARTED OPTIONS`.

    `options` are the worker's own settings, `python` the interpreter (None: this one), `job` the folder inside the
    run's job folder that is this contender's.
    """

    name: str
    title: str
    worker: str
    options: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None
    job: str = ""


@dataclass(frozen=True)
class Run:
    """What one fresh process reported: the body of `result.json` and the gradients that it kept."""

    result: Mapping[str, Any]
    gradients: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Failure:
    """A contender that did not finish its run, and the last line that it wrote to standard error."""

    reason: str


Runs = dict[str, list[Run]]


def process_environment(threads: int) -> dict[str, str]:
    """The environment of a measured process: this checkout, so many threads, no network.

    Bytecode is kept, as it is of an installed package, so that a cold start does not count compiling Python.
    """
    paths = [str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]
    set_here = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | dict.fromkeys(THREAD_VARIABLES, str(threads)) | set_here


class Process:
    """A contender's fresh process; it runs when it is given a turn and waits otherwise.

    `on_start` is called in the new process before the worker's program, as a limit needs it. With `keep_errors`
    standard error goes to a file beside the result, whose last line tells why a contender failed.
    """

    def __init__(
        self,
        contender: Contender,
        job: Path,
        result: Path,
        threads: int,
        keep_errors: bool = False,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        self.contender, self.result = contender, result
        result.mkdir(parents=True, exist_ok=True)
        self._errors = (result / ERRORS_FILE).open("w", encoding="utf-8") if keep_errors else None
        command = [contender.python or sys.executable, "-m", contender.worker, str(job / contender.job), str(result)]
        self._process = subprocess.Popen(
            [*command, repr(time.time()), json.dumps(dict(contender.options))],
            env=process_environment(threads),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            preexec_fn=on_start,
        )

    def finish_turn(self) -> bool:
        """Wait until the turn is over; False if the process has ended.

        Raises:
            BenchmarkError: it has failed; its own message stands on standard error.
        """
        assert self._process.stdout is not None
        if self._process.stdout.readline():
            return True
        if self._process.wait():
            raise BenchmarkError(f"{self.contender.title} failed: {self._reason()}")
        return False

    def _reason(self) -> str:
        status = f"exit status {self._process.returncode}"
        if self._errors is None:
            return status
        lines = (self.result / ERRORS_FILE).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1].strip()[:300]} ({status})" if lines else status

    def give_turn(self) -> None:
        """Let the process go on."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a process that has ended is found out when its turn is over
            self._process.stdin.write("go on\n")
            self._process.stdin.flush()

    def read(self) -> Run:
        """What it wrote before it ended."""
        with np.load(self.result / GRADIENTS_FILE) as arrays:
            gradients = {name: arrays[name] for name in arrays.files}
        return Run(json.loads((self.result / RESULT_FILE).read_text(encoding="utf-8")), gradients)

    def end(self) -> None:
        """Kill the process if it still runs; whoever waits for its turn is told that it failed."""
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """End the process, and let go of what was opened for it."""
        self.end()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        if self._errors is not None:
            self._errors.close()


def run_in_turns(
    contenders: Sequence[Contender], job: Path, results: Path, threads: int, keep_failures: bool = False
) -> list[Run | Failure]:
    """One run of each contender: started one after the other, then a turn each until all have ended.

    Raises:
        BenchmarkError: a contender failed, unless `keep_failures` makes that its result.
    """
    processes: list[Process] = []
    failed: dict[str, Failure] = {}

    def goes_on(process: Process) -> bool:
        try:
            return process.finish_turn()
        except BenchmarkError as error:
            if not keep_failures:
                raise
            failed[process.contender.name] = Failure(str(error))
            return False

    try:
        running: list[Process] = []
        for contender in contenders:
            processes.append(Process(contender, job, results / contender.name, threads, keep_failures))
            if goes_on(processes[-1]):
                running.append(processes[-1])
        while running:
            for process in tuple(running):
                process.give_turn()
                if not goes_on(process):
                    running.remove(process)
    finally:
        for process in processes:
            process.close()
    return [failed.get(p.contender.name) or p.read() for p in processes]


def alternate(
    contenders: Sequence[Contender],
    jobs: Sequence[Path],
    results: Path,
    threads: int,
    progress: Callable[[str], None],
    failures: dict[str, str] | None = None,
) -> Runs:
    """Each job by every contender before the next job; who begins changes every time (AB, BA, AB, …).

    A contender that fails leaves its reason in `failures` and takes no further part.

    Raises:
        BenchmarkError: a contender failed, and there is no `failures` to take it.
    """
    runs: Runs = {contender.name: [] for contender in contenders}
    for repeat, job in enumerate(jobs):
        progress(f"run {repeat + 1} of {len(jobs)}")
        order = [c for c in contenders if not failures or c.name not in failures]
        order = order if repeat % 2 == 0 else order[::-1]
        found = run_in_turns(order, job, results / str(repeat), threads, failures is not None)
        for contender, run in zip(order, found, strict=True):
            if isinstance(run, Run):
                runs[contender.name].append(run)
            elif failures is not None:
                failures[contender.name] = run.reason
                progress(run.reason)
    return runs


def summarize(runs: Sequence[Run], threshold: float) -> dict[str, Any]:
    """Medians over the runs; the step time's quartiles are over all steps of all runs, the first left out."""
    bodies = [run.result for run in runs]
    steps = np.concatenate([body["step_seconds"][1:] or body["step_seconds"] for body in bodies])
    quartiles = np.percentile(steps, [25, 50, 75])
    reached = [t for body in bodies if (t := seconds_to(body, threshold)) is not None]
    return {
        "accuracy": [float(np.median(epoch)) for epoch in zip(*(b["accuracy"] for b in bodies), strict=True)],
        "training_cpu_seconds": _median(sum(b["step_cpu_seconds"]) for b in bodies),
        "training_seconds": _median(sum(b["step_seconds"]) for b in bodies),
        "seconds_to_threshold": _median(reached) if len(reached) == len(bodies) else None,
        "step_seconds": float(quartiles[1]),
        "step_seconds_quartiles": [float(quartiles[0]), float(quartiles[2])],
        "peak_memory_mb": _median(b["peak_memory_mb"] for b in bodies),
        "peak_memory_with_evaluation_mb": _median(b["peak_memory_with_evaluation_mb"] for b in bodies),
        "cold_start_seconds": _median(b["cold_start_seconds"] for b in bodies),
    }


def seconds_to(result: Mapping[str, Any], threshold: float) -> float | None:
    """Seconds of training up to the end of the first epoch with this accuracy, None if there is none."""
    seconds = np.cumsum(result["step_seconds"])
    for end, accuracy in zip(result["epoch_ends"], result["accuracy"], strict=True):
        if accuracy >= threshold:
            return float(seconds[end])
    return None


def ratios(ours: Mapping[str, Any], rival: Mapping[str, Any]) -> dict[str, float]:
    """Ours divided by the rival's, of every figure that both have."""
    return {
        key: value / rival[key]
        for key, value in ours.items()
        if isinstance(value, float) and isinstance(rival[key], float) and rival[key]
    }


def paired_step_ratio(ours: Sequence[Run], rival: Sequence[Run]) -> dict[str, float]:
    """Quartiles of our step's time divided by the rival's time for the same batch, the first step left out."""
    pairs = [
        np.divide(a.result["step_seconds"][1:], b.result["step_seconds"][1:]) for a, b in zip(ours, rival, strict=True)
    ]
    low, middle, high = (float(q) for q in np.percentile(np.concatenate(pairs), [25, 50, 75]))
    return {"median": middle, "low": low, "high": high}


def agreement(ours: Sequence[Run], rival: Sequence[Run], steps: int) -> dict[str, Any]:
    """How far ours is from the rival, run by run: the worst of all.

    `loss` is the largest difference of the losses over the first `steps` steps, `gradients` for each
    adapter at which they were taken the largest ‖g − g'‖ / ‖g'‖ of a tensor, and which tensor it is.
    """
    differences = [
        np.abs(np.subtract(a.result["losses"][:steps], b.result["losses"][:steps]))
        for a, b in zip(ours, rival, strict=True)
    ]
    worst: dict[str, dict[str, Any]] = {}
    for a, b in zip(ours, rival, strict=True):
        if a.gradients.keys() != b.gradients.keys():
            raise BenchmarkError(f"gradients of one side only: {sorted(a.gradients.keys() ^ b.gradients.keys())}")
        for key, expected in b.gradients.items():
            at, _, name = key.partition("/")
            error = relative_error(a.gradients[key], expected)
            if at not in worst or error > worst[at]["relative_error"]:
                worst[at] = {"relative_error": error, "tensor": name}
    return {
        "steps": max(len(d) for d in differences),
        "loss": float(max(d.max() for d in differences)),
        "gradients": worst,
        "tensors": len(rival[0].gradients) // max(1, len(worst)),
    }


def relative_error(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """‖a − e‖ / ‖e‖ in float64; 0 where both are zero."""
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    error = float(np.linalg.norm(actual.astype(np.float64) - expected.astype(np.float64)))
    return error / norm if norm else (0.0 if error == 0.0 else float("inf"))


def _median(values: Any) -> float:
    return float(np.median(list(values)))
