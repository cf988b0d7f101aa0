"""Speed: EdgeLoRA's variants and its rivals in turn on one case; every figure, and the ratios to the best PEFT variant.

Three rounds. "cost": an epoch by everyone, for step time, memory, cold start and the share of the multiplication
peak, which is measured in the same turns. "prefix": two epochs, with adapters in the last layers. "accuracy": how
long training takes to the case's accuracy, each side at the best of its learning rates. Then one run with a
memory budget, under a hard limit. A variant or rival that cannot run is a row that says why.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import clinc, figures, variants
from benchmarks.cases import CASES, Case, Work
from benchmarks.duration import Round, in_words
from benchmarks.gemm import OperationCount
from benchmarks.job import INITIAL, Job
from benchmarks.limited import run_limited
from benchmarks.measure import BenchmarkError, Contender, Run, Runs, alternate
from benchmarks.rivals import RIVALS, Rival, Unavailable
from benchmarks.rivals.base import Place
from benchmarks.variants import AFTER_PREFIX, BUDGET, FP32, INT8, LAST, SKIP, SMALL, UNPADDED, Variant
from edgelora.adapter import read_adapter
from edgelora.bundle import Bundle
from edgelora.errors import EdgeLoraError
from edgelora.multiplication import square

PEAK = "peak"
ALL, LAST_LAYERS = "all", "last"
LIMIT_MB = 256
SQUARE = 1024
SAME_COMPUTATION = (FP32.name, "peft-eager", "peft-sdpa", "peft-compile", "ort-training")
COMPARED_STEPS = 5
Progress = clinc.Progress


@dataclass(frozen=True)
class SpeedOptions:
    """What the command line chooses: `rivals` and `variants` None are all, `accuracy_repeats` 0 leaves that out."""

    case: str = "text"
    repeats: int = 3
    epochs: int = 1
    accuracy_repeats: int = 1
    accuracy_epochs: int = 5
    rivals: tuple[str, ...] | None = None
    variants: tuple[str, ...] | None = None
    threads: int = 2
    seed: int = 0
    per_intent: int = 10
    max_steps: int | None = None
    test_texts: int | None = None

    def quick(self) -> SpeedOptions:
        """A smoke run of a few steps, once; its figures mean nothing."""
        return replace(
            self, repeats=1, epochs=1, accuracy_repeats=0, per_intent=2, max_steps=self.max_steps or 4, test_texts=64
        )


class Speed:
    """One run of the benchmark: what was prepared, what ran, what could not."""

    def __init__(self, options: SpeedOptions, folder: Path, progress: Progress) -> None:
        self.options, self.folder, self.progress = options, folder, progress
        self.case: Case = CASES[options.case]
        self.model = self.case.model(progress)
        self.unavailable: dict[str, dict[str, str]] = {}
        self.bundles: dict[str, Path] = {}
        self.failures: dict[str, str] = {}
        self.titles: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        plain = self.bundle_of(FP32)
        if plain is None:
            raise BenchmarkError(self.unavailable[FP32.name]["reason"])
        self.bundle = Bundle.open(plain)
        self.place = Place(plain, folder, folder / "rivals", options.threads, progress)

    def work(self, epochs: int, max_steps: int | None, test_texts: int | None) -> Work:
        """The case's data for runs of so many epochs."""
        options = clinc.ClincOptions(
            epochs=epochs,
            per_intent=self.options.per_intent,
            targets=self.case.targets,
            batch_size=self.case.batch_size,
            threads=self.options.threads,
            seed=self.options.seed,
            max_steps=max_steps,
            test_texts=test_texts,
        )
        intents, train, test = clinc.read_clinc(clinc.find_data(), options)
        return Work(self.case, options, self.bundle, self.model, (train, test), intents)

    def ours(self, rows: Sequence[Variant], suffix: str = "", **training: Any) -> list[Contender]:
        """The variants that can run here."""
        found: list[Contender] = []
        for row in rows:
            chosen = self.options.variants is None or row.name in self.options.variants
            bundle = self.bundle_of(row) if chosen else None
            if bundle is not None:
                made = row.contender(str(bundle), **training)
                found.append(replace(made, name=f"{row.name}{suffix}"))
        return self._titled(found)

    def rivals(self, family: str | None, job: str, suffix: str = "", **options: Any) -> list[Contender]:
        """The rivals of this family (None: all) that can run here."""
        found: list[Contender] = []
        for rival in self.chosen():
            if family in (None, rival.family):
                try:
                    found.append(rival.contender(self.place, job, suffix, **options))
                except Unavailable as error:
                    self._cannot(rival.name, rival.title, str(error))
        return self._titled(found)

    def alternate(self, contenders: Sequence[Contender], jobs: Sequence[Path], name: str) -> Runs:
        """Run them in turn; who fails becomes a row, and is left out of the figures."""
        self.progress(f"round {name}: {', '.join(c.name for c in contenders)}")
        failures: dict[str, str] = {}
        runs = alternate(contenders, jobs, self.folder / name, self.options.threads, self.progress, failures)
        for failed, reason in failures.items():
            self._cannot(failed, self.titles.get(failed, failed), reason)
        for found in runs.values():
            for run in found:
                self.versions |= run.result.get("versions", {})
        return {name: found for name, found in runs.items() if name not in failures}

    def chosen(self) -> tuple[Rival, ...]:
        """The rivals that were asked for."""
        wanted = self.options.rivals
        unknown = set(wanted or ()) - {rival.name for rival in RIVALS}
        if unknown:
            raise BenchmarkError(
                f"no rival {', '.join(sorted(unknown))}; there are {', '.join(rival.name for rival in RIVALS)}"
            )
        return tuple(rival for rival in RIVALS if wanted is None or rival.name in wanted)

    def _titled(self, contenders: list[Contender]) -> list[Contender]:
        self.titles |= {c.name: c.title for c in contenders}
        return contenders

    def bundle_of(self, row: Variant) -> Path | None:
        """The bundle of a variant; None if it cannot be had, which becomes a row."""
        if row.name in self.bundles:
            return self.bundles[row.name]
        try:
            self.bundles[row.name] = self.case.bundle(self.model, row.convert, self.progress)
        except EdgeLoraError as error:
            self._cannot(row.name, row.title, str(error))
            return None
        return self.bundles[row.name]

    def _cannot(self, name: str, title: str, reason: str) -> None:
        if name not in self.unavailable:
            self.unavailable[name] = {"title": title, "reason": reason}
            self.progress(f"{title}: {reason}")


def run(options: SpeedOptions, progress: Progress) -> dict[str, Any]:
    """Prepare, run the rounds, and return the report's body.

    Raises:
        BenchmarkError: the data or the model cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="edgelora-speed-") as folder:
        speed = Speed(options, Path(folder), progress)
        cost, cost_runs = cost_round(speed)
        prefix = prefix_round(speed)
        accuracy = accuracy_round(speed, cost) if options.accuracy_repeats else {}
        limited = limited_run(speed)
    ratios, reasons = ratios_of(cost, cost_runs, prefix, accuracy)
    if options.max_steps is not None:
        ratios["cached_epoch"], reasons["cached_epoch"] = None, "epochs were cut short by the most steps"
    return {
        "case": speed.case.title,
        "options": asdict(options),
        "machine": {"processor": clinc.processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": speed.versions,
        "threshold": speed.case.threshold,
        "ratios": ratios,
        "each_ratio": each_of(cost, cost_runs),
        "reasons": reasons,
        "aims": {
            key: {"title": title, "aim": aim, "sense": sense} for key, (title, aim, sense) in figures.AIMS.items()
        },
        "titles": speed.titles,
        "cost": cost,
        "prefix": prefix,
        "accuracy": accuracy,
        "limited": limited,
        "unavailable": speed.unavailable,
        "runs": {n: [dict(r.result) for r in found] for n, found in cost_runs.items() if n != PEAK},
    }


def expectation(speed: Speed, operations: Sequence[int]) -> str:
    """How many minutes the rounds take, where nothing else wants the cores; `operations` are an epoch's, by step."""
    options, rivals = speed.options, speed.chosen()
    peft = sum(rival.family == "peft" for rival in rivals)

    def ours(rows: Sequence[Variant]) -> int:
        return sum(options.variants is None or row.name in options.variants for row in rows)

    steps, cached = len(operations), ours(AFTER_PREFIX)
    rounds = [Round(options.repeats, steps, ours(variants.COST) + 1, len(rivals))]
    if cached:
        rounds.append(Round(options.repeats, 2 * steps, cached / 2, 2 * peft))
    if options.accuracy_repeats:
        runs = len(speed.case.rates) + options.accuracy_repeats - 1
        sides = ours([FP32, *variants.FASTEST]), min(peft, 1)
        batches = options.accuracy_epochs * clinc.TEST_TEXTS / speed.case.batch_size
        rounds.append(Round(runs, options.accuracy_epochs * steps // options.epochs, *sides, batches))
    products = square(options.threads)
    step = sum(operations) / len(operations) / max(products.rates().values())
    products.close()
    return (
        f"about {in_words(sum(r.seconds(step) for r in rounds))} where nothing else wants the cores, "
        "and as long again to convert and to set up the rivals the first time"
    )


def cost_round(speed: Speed) -> tuple[dict[str, Any], Runs]:
    """Figures by contender, and the runs that they come from."""
    work = speed.work(speed.options.epochs, speed.options.max_steps, speed.options.test_texts or 64)
    jobs = [speed.folder / f"cost-{repeat}" for repeat in range(speed.options.repeats)]
    for repeat, job in enumerate(jobs):
        work.write(job / ALL, repeat)
    speed.place = replace(speed.place, job=jobs[0] / ALL)
    count = StepOperations(speed, jobs[0])
    operations = [[count(job.train.feeds(rows)) for rows in job.batches()] for job in map(read, jobs)]
    speed.progress(expectation(speed, operations[0]))
    first = read(jobs[0])
    sizes = [*count.count.largest(count.adapter | first.train.feeds(first.batches()[0]), 3), [SQUARE] * 3]
    peak = Contender(PEAK, "multiplication peak", "benchmarks.worker_peak", {"sizes": sizes}, job=ALL)
    rows = [*speed.ours(variants.COST), *speed.rivals(None, ALL)]
    runs = speed.alternate([*rows[:1], peak, *rows[1:]], jobs, "cost")
    found: dict[str, Any] = {name: figures.cost(made) for name, made in runs.items() if name != PEAK and made}
    for name in found:
        if runs.get(FP32.name):
            found[name]["loss_difference"] = figures.loss_difference(runs[name], runs[FP32.name], COMPARED_STEPS)
    if runs.get(PEAK):
        for name in found:
            if name in SAME_COMPUTATION:
                found[name]["gemm_share"] = figures.gemm_share(runs[name], runs[PEAK], operations)
        peaks = [rate for run in runs[PEAK] for rate in figures.peak_by_turn(run.result["rates"])]
        found[PEAK] = {"operations_per_second": figures.spread(peaks)}
    return found, runs


class StepOperations:
    """Operations of a step of the case, by its batch."""

    def __init__(self, speed: Speed, job: Path) -> None:
        manifest = speed.bundle.manifest
        self.adapter: dict[str, Any] = dict(read_adapter(job / ALL / INITIAL).feeds(manifest))
        self.count = OperationCount(speed.bundle.path / manifest.forward, frozenset(self.adapter))

    def __call__(self, feeds: Any) -> int:
        return self.count.step({**feeds, **self.adapter})


def read(job: Path) -> Job:
    """The job with adapters in all layers."""
    return Job.read(job / ALL)


def prefix_round(speed: Speed) -> dict[str, Any]:
    """Seconds of an epoch after the first, with adapters in the last layers, and PEFT's with adapters in all."""
    steps = speed.options.max_steps
    work = speed.work(2, None if steps is None else 2 * steps, speed.options.test_texts or 64)
    ours = speed.ours(AFTER_PREFIX)
    if not ours:
        return {}
    jobs = [speed.folder / f"prefix-{repeat}" for repeat in range(speed.options.repeats)]
    for repeat, job in enumerate(jobs):
        work.write(job / ALL, repeat)
        work.write(job / LAST_LAYERS, repeat, speed.case.last(LAST))
    rivals = [*speed.rivals("peft", ALL), *speed.rivals("peft", LAST_LAYERS, f"-last{LAST}")]
    runs = speed.alternate([*ours, *rivals], jobs, "prefix")
    return {
        name: figures.cost(found) | {"epoch_seconds": figures.epoch_seconds(found)}
        for name, found in runs.items()
        if found
    }


def accuracy_round(speed: Speed, cost: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and the time to the threshold: every rate once, then the best rate of each for the other repeats."""
    work = speed.work(speed.options.accuracy_epochs, None, speed.options.test_texts)
    jobs = [speed.folder / f"accuracy-{repeat}" for repeat in range(speed.options.accuracy_repeats)]
    for repeat, job in enumerate(jobs):
        work.write(job / ALL, repeat)
        work.write(job / LAST_LAYERS, repeat, speed.case.last(LAST))
        if (skips := speed.bundle_of(SKIP)) is not None:
            work.write(job / SKIP.job, repeat, bundle=Bundle.open(skips))
    fastest = figures.best(cost, [r.name for r in RIVALS if r.family == "peft"], "step_seconds")
    contenders: list[Contender] = []
    for rate in speed.case.rates:
        suffix = f" {rate:g}"
        contenders += speed.ours([FP32, *variants.FASTEST], suffix, learning_rate=rate)
        contenders += [
            c
            for c in speed.rivals("peft", ALL, suffix, learning_rate=rate)
            if fastest is None or c.name == f"{fastest}{suffix}"
        ]
    runs = speed.alternate(contenders, jobs[:1], "rates")
    chosen = best_rates(runs, speed.case.threshold)
    if jobs[1:]:
        more = speed.alternate([c for c in contenders if c.name in chosen.values()], jobs[1:], "accuracy")
        runs = {name: [*found, *more.get(name, [])] for name, found in runs.items()}
    return {
        side: figures.accuracy(runs[name], speed.case.threshold) | {"learning_rate": float(name.split()[1])}
        for side, name in chosen.items()
    }


def best_rates(runs: Runs, threshold: float) -> dict[str, str]:
    """For each contender, the name with the rate that reaches the threshold first, or else the highest accuracy."""

    def order(found: Sequence[Run]) -> tuple[float, float]:
        made = figures.accuracy(found, threshold)
        reached = made["seconds_to_threshold"]
        return (reached["median"] if reached else float("inf"), -made["best_accuracy"]["median"])

    chosen: dict[str, str] = {}
    for name in sorted((name for name, found in runs.items() if found), key=lambda n: order(runs[n])):
        chosen.setdefault(name.split()[0], name)
    return chosen


def final_accuracies(accuracy: dict[str, Any], names: Sequence[str]) -> str:
    """What accuracy those of these names ended at that took part."""
    ended = [f"{n} {accuracy[n]['final_accuracy']['median']:.3f}" for n in names if n in accuracy]
    return f"final accuracy {', '.join(ended)}"


def limited_run(speed: Speed) -> dict[str, Any]:
    """A run with a memory budget, alone in a fresh process under a hard limit."""
    ours = speed.ours([BUDGET])
    if not ours:
        row = speed.unavailable.get(BUDGET.name, {"reason": f"{BUDGET.title} was left out"})
        return {"completed": None, "reason": row["reason"]}
    speed.progress(f"{BUDGET.title} within {LIMIT_MB} MiB")
    job = speed.folder / "cost-0"
    return run_limited(ours[0], job, speed.folder / "limited", speed.options.threads, LIMIT_MB)


def each_of(cost: dict[str, Any], runs: Runs) -> dict[str, list[float]]:
    """Of each repeat by itself, the ratios of the round in which all take turns."""
    peft = [rival.name for rival in RIVALS if rival.family == "peft"]
    compared = {
        "step_fp32": (FP32.name, "step_seconds"),
        "step_int8": (INT8.name, "step_seconds"),
        "peak_memory": (SMALL.name, "peak_memory_mb"),
        "cold_start": (UNPADDED.name, "cold_start_seconds"),
    }
    return {aim: figures.each_ratio(runs, cost, ours, peft, key) for aim, (ours, key) in compared.items()}


def ratios_of(
    cost: dict[str, Any], runs: Runs, prefix: dict[str, Any], accuracy: dict[str, Any]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The report's ratios, and beside each who is compared with whom, or why it is null."""
    peft = [rival.name for rival in RIVALS if rival.family == "peft"]
    last = [f"{name}-last{LAST}" for name in peft]
    found: dict[str, tuple[float | None, str]] = {
        "step_fp32": figures.paired_ratio(runs, cost, FP32.name, peft),
        "step_int8": figures.paired_ratio(runs, cost, INT8.name, peft),
        "peak_memory": figures.ratio(cost, SMALL.name, peft, "peak_memory_mb"),
        "cold_start": figures.ratio(cost, UNPADDED.name, peft, "cold_start_seconds"),
    }
    cached = figures.best(prefix, [v.name for v in AFTER_PREFIX], "epoch_seconds") or AFTER_PREFIX[0].name
    found["cached_epoch"] = figures.ratio(prefix, cached, [*peft, *last], "epoch_seconds")
    fastest = figures.best(accuracy, [FP32.name, *(v.name for v in variants.FASTEST)], "seconds_to_threshold")
    if not accuracy:
        found["time_to_085"] = (None, "the accuracy round was left out")
    elif fastest is None:
        found["time_to_085"] = (None, "none of ours reached it")
    else:
        found["time_to_085"] = figures.ratio(accuracy, fastest, peft, "seconds_to_threshold")
    for key, ours in (("step_int8", INT8.name), ("time_to_085", fastest)):
        if ours in accuracy:
            found[key] = found[key][0], f"{found[key][1]}; {final_accuracies(accuracy, [ours, *peft])}"
    share = cost.get(FP32.name, {}).get("gemm_share")
    found["gemm_share"] = (None, "the peak could not be measured") if share is None else (share["median"], FP32.name)
    return {key: found[key][0] for key in figures.AIMS}, {key: found[key][1] for key in figures.AIMS}
