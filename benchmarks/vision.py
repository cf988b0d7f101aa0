"""Vision: a network's training step against PEFT on PyTorch, BatchNorm in evaluation mode, in every layout of torch's.

Same weights, first values, batches and threads; fresh processes that take turns; medians. "step": fp32 steps and peak
memory, adapters at every point. "last": epochs of adapters in the last blocks, after the first epoch, ours from the
cached prefix. "int8": our step on an int8 base. Pictures are random: their content costs nothing. A detector's loss is
the same code on both sides (boxes.py).
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clinc, figures
from benchmarks.boxes import CLASSES as KINDS
from benchmarks.first_values import write_first_values
from benchmarks.job import Images, Job, Settings
from benchmarks.measure import BenchmarkError, Contender, Run, Runs, agreement, alternate
from benchmarks.report import spinning_in_title, table
from benchmarks.variants import WORKER
from benchmarks.vision_cases import CASES, Case
from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.errors import EdgeLoraError

RANK, ALPHA, CLASSES, RATE, PROBE_STD = 8, 16, 10, 1e-3, 0.05
LAST_EPOCHS = 4  # of the round "last", whose first is not timed
TORCH_WORKER = "benchmarks.worker_torch_vision"
AIMS = {"step": 1.0, "peak_memory": 0.5, "last": 0.10, "int8": 0.7}
TORCH = {
    "peft": ("PEFT", {}),
    "peft-last": ("PEFT, channels last", {"channels_last": True}),
    "peft-folded": ("PEFT, BatchNorm folded", {"folded": True}),
    "peft-folded-last": ("PEFT, BatchNorm folded, channels last", {"folded": True, "channels_last": True}),
}
SAME_VALUES = ("peft", "peft-last")  # their adapters stand where ours do
OURS = "edgelora"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class VisionOptions:
    """What the command line chooses; None is the case's own, and of `spinning` SessionSettings'."""

    case: str = "mobilenetv2"
    rounds: tuple[str, ...] | None = None
    size: int | None = None
    batch_size: int | None = None
    steps: int = 11
    repeats: int = 3
    threads: int = 2
    spinning: bool | None = None


def run(options: VisionOptions, progress: Progress) -> dict[str, Any]:
    """Convert, write the jobs, run the rounds; the body of the report.

    Raises:
        BenchmarkError: the weights cannot be had, the case has no such round, or a contender failed.
    """
    case = CASES[options.case]
    case = replace(case, size=options.size or case.size, batch_size=options.batch_size or case.batch_size)
    rounds = options.rounds or case.rounds
    if strange := set(rounds) - set(case.rounds):
        raise BenchmarkError(f"{case.name} has no round {', '.join(sorted(strange))}; it has {', '.join(case.rounds)}")
    try:
        weights = case.weights(progress)
        bundles = {name: case.bundle(name, weights, progress) for name in rounds}
    except EdgeLoraError as error:
        raise BenchmarkError(str(error)) from error
    found: dict[str, Any] = {}
    ratios: dict[str, float | None] = {}
    each: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="edgelora-vision-") as folder:
        for name, bundle in bundles.items():
            progress(f"round {name}")
            runs = measured(case, name, bundle, weights, options, Path(folder) / name, progress)
            costs = {who: figures.cost(made) | {"cpu_seconds": cpu_seconds(made)} for who, made in runs.items()}
            key = "step_seconds"
            if name == "last":
                key = "epoch_seconds"
                costs = {who: cost | {key: figures.epoch_seconds(runs[who])} for who, cost in costs.items()}
            for aim, of in {name: key, **({"peak_memory": "peak_memory_mb"} if name == "step" else {})}.items():
                ratios[aim] = figures.ratio(costs, OURS, TORCH, of)[0]
                each[aim] = figures.each_ratio(runs, costs, OURS, TORCH, of)
            found[name] = {"cost": costs}
            if name != "int8":
                found[name]["agreement"] = {who: agreement(runs[OURS], runs[who], 3) for who in SAME_VALUES}
    return {
        "case": case.title,
        "options": vars(options) | {"size": case.size, "batch_size": case.batch_size},
        "machine": {"processor": clinc.processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "aims": AIMS,
        "ratios": ratios,
        "each_ratio": each,
        "rounds": found,
    }


def cpu_seconds(runs: Sequence[Run]) -> figures.Figure:
    """Processor seconds of a step of all threads, which other processes lengthen less; the first steps left out."""
    return figures.spread(np.concatenate([figures.later(run.result["step_cpu_seconds"]) for run in runs]))


def measured(
    case: Case, name: str, path: Path, weights: Path, options: VisionOptions, folder: Path, progress: Progress
) -> Runs:
    """Every contender's runs of a round."""
    bundle = Bundle.open(path)
    epochs = LAST_EPOCHS if name == "last" else 1
    training: dict[str, Any] = {}
    if name == "last":
        training = {"train_last": case.last, "cache": "memory"}
    jobs = [write_job(folder / str(r), case, bundle, weights, options, epochs, r) for r in range(options.repeats)]
    given = {"bundle": str(path), "training": training, "session": {"spinning": options.spinning}}
    ours = Contender(OURS, "EdgeLoRA", WORKER, given)
    network = {"network": str(case.network), "factory": case.factory}
    rivals = [Contender(who, title, TORCH_WORKER, network | settings) for who, (title, settings) in TORCH.items()]
    return alternate([ours, *rivals], jobs, folder / "runs", options.threads, progress)


def write_job(
    folder: Path, case: Case, bundle: Bundle, weights: Path, options: VisionOptions, epochs: int, repeat: int
) -> Path:
    """The files of one run: random pictures, first values, and values with a B that is not zero."""
    rng = np.random.default_rng(repeat)
    count, (image,) = case.batch_size * options.steps, bundle.manifest.inputs
    pixels = rng.standard_normal((count, 3, case.size, case.size), np.float32)
    boxes, labels = None, rng.integers(0, KINDS if case.boxes else CLASSES, count)
    if case.boxes:
        corners = rng.uniform(0.0, case.size / 2, (count, 2))
        sides = rng.uniform(case.size / 8, case.size / 2, (count, 2))
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    images = Images(pixels, labels, boxes, image.name)
    settings = Settings(
        bundle=str(bundle.path),
        model=str(weights),
        threads=options.threads,
        epochs=epochs,
        batch_size=case.batch_size,
        learning_rate=RATE,
        max_steps=None,
        image_input=image.name,
        unbroken=epochs > 1,
    )
    order = np.stack([rng.permutation(count) for _ in range(epochs)])
    first = np.s_[: case.batch_size]
    test = Images(pixels[first], labels[first], None if boxes is None else boxes[first], image.name)
    Job(folder, settings, images, test, order).write()
    prefix = bundle.manifest.prefixes
    targets = prefix[0].points if prefix else None
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    names = None if bundle.manifest.head is None else tuple(map(str, range(CLASSES)))
    initial = new_adapter(bundle.manifest, lora, labels=names, rng=rng)
    write_first_values(folder, initial, rng, PROBE_STD)
    return folder


def markdown(body: Mapping[str, Any]) -> str:
    """A table a round, and the ratios beside their aims."""
    options, machine = body["options"], body["machine"]
    blocks = [
        f"{body['case']}: batch {options['batch_size']} × 3 × {options['size']} × {options['size']}, "
        f"{options['threads']} threads, medians of {options['repeats']} runs in turn. {machine['processor']}, "
        f"{machine['cores']} cores."
    ]
    titles = {OURS: f"EdgeLoRA{spinning_in_title(options['spinning'])}"} | {
        who: title for who, (title, _) in TORCH.items()
    }
    for name, found in body["rounds"].items():
        rows = [_row(titles[who], name, cost) for who, cost in found["cost"].items()]
        first = "epoch after the first, s" if name == "last" else "step, ms"
        blocks.append(table([f"round {name}", first, "step, CPU ms", "peak, MiB", "cold start, s"], rows))
        for who, one in found.get("agreement", {}).items():
            worst = ", ".join(f"{at} {w['relative_error']:.1e} ({w['tensor']})" for at, w in one["gradients"].items())
            blocks.append(f"{titles[who]}: gradients differ by {worst} at most, losses by {one['loss']:.1e}.")
    ratios = [
        [k, "—" if r is None else f"{r:.3f}", figures.listed(body["each_ratio"][k]), f"≤ {AIMS[k]:g}"]
        for k, r in body["ratios"].items()
    ]
    blocks.append(table(["to the best of torch's", "ratio", "of each run", "aim"], ratios))
    return "\n\n".join(blocks)


def _row(title: str, name: str, cost: Mapping[str, Any]) -> Sequence[str]:
    time = f"{cost['epoch_seconds']['median']:.2f}" if name == "last" else f"{cost['step_seconds']['median'] * 1e3:.0f}"
    cpu = f"{cost['cpu_seconds']['median'] * 1e3:.0f}"
    return [title, time, cpu, f"{cost['peak_memory_mb']['median']:.0f}", f"{cost['cold_start_seconds']['median']:.2f}"]
