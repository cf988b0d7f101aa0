"""Vision: a network's training step against PEFT on PyTorch, BatchNorm in evaluation mode, in every layout of torch's.

Same weights, first values, batches and threads; fresh processes that take turns; medians. "step": fp32 steps and peak
memory, adapters at every point. "last": epochs of adapters in the last blocks, after the first epoch, ours from the
cached prefix. "int8": our step on an int8 base. Pictures are random: their content costs nothing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clinc, figures
from benchmarks.job import INITIAL, PROBE, Images, Job, Settings
from benchmarks.measure import BenchmarkError, Contender, Run, Runs, agreement, alternate
from benchmarks.report import table
from benchmarks.variants import WORKER
from edgelora.adapter import new_adapter, write_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.errors import EdgeLoraError
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import cache_folder, fetch, load_recipe, open_recipe

RANK, ALPHA, CLASSES, RATE, PROBE_STD = 8, 16, 10, 1e-3, 0.05
ROUNDS = ("step", "last", "int8")
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
class Case:
    """A recipe with a network of its own, at one size; `last` is the number of blocks that the round "last" trains."""

    name: str
    title: str
    recipe: str
    size: int
    batch_size: int
    last: int


CASES = {
    case.name: case
    for case in (
        Case("mobilenetv2", "MobileNetV2, LoRA r8 on all 1×1 and the first convolution", "mobilenetv2", 224, 8, 3),
    )
}


@dataclass(frozen=True)
class VisionOptions:
    """What the command line chooses; `size` None is the case's own."""

    case: str = "mobilenetv2"
    rounds: tuple[str, ...] = ROUNDS
    size: int | None = None
    batch_size: int | None = None
    steps: int = 11
    repeats: int = 3
    threads: int = 2


def run(options: VisionOptions, progress: Progress) -> dict[str, Any]:
    """Convert, write the jobs, run the rounds; the body of the report.

    Raises:
        BenchmarkError: the weights cannot be had, or a contender failed.
    """
    case = CASES[options.case]
    case = replace(case, size=options.size or case.size, batch_size=options.batch_size or case.batch_size)
    try:
        model = fetch(load_recipe(case.recipe), progress)
        bundles = {name: bundle_of(case, name, progress) for name in options.rounds}
    except EdgeLoraError as error:
        raise BenchmarkError(str(error)) from error
    found: dict[str, Any] = {}
    ratios: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="edgelora-vision-") as folder:
        for name, bundle in bundles.items():
            progress(f"round {name}")
            runs = measured(case, name, bundle, model, options, Path(folder) / name, progress)
            costs = {who: figures.cost(made) | {"cpu_seconds": cpu_seconds(made)} for who, made in runs.items()}
            key = "step_seconds"
            if name == "last":
                key = "epoch_seconds"
                costs = {who: cost | {key: figures.epoch_seconds(runs[who])} for who, cost in costs.items()}
            ratios[name] = figures.ratio(costs, OURS, TORCH, key)[0]
            if name == "step":
                ratios["peak_memory"] = figures.ratio(costs, OURS, TORCH, "peak_memory_mb")[0]
            found[name] = {"cost": costs}
            if name != "int8":
                found[name]["agreement"] = {who: agreement(runs[OURS], runs[who], 3) for who in SAME_VALUES}
    return {
        "case": case.title,
        "options": vars(options) | {"size": case.size, "batch_size": case.batch_size},
        "machine": {"processor": clinc.processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "aims": AIMS,
        "ratios": ratios,
        "rounds": found,
    }


def cpu_seconds(runs: Sequence[Run]) -> figures.Figure:
    """Processor seconds of a step of all threads, which other processes lengthen less; the first steps left out."""
    return figures.spread(np.concatenate([figures.later(run.result["step_cpu_seconds"]) for run in runs]))


def bundle_of(case: Case, name: str, progress: Progress) -> Path:
    """The bundle of a round, converted anew whenever the converter's source has changed."""
    settings: dict[str, Any] = {}
    if name == "last":
        settings["train_last"] = (case.last,)
    if name == "int8":
        settings["quantize"] = "int8"
    what = repr((case.recipe, case.size, sorted(settings.items()), clinc.source_digest()))
    path = cache_folder() / "benchmarks" / f"{case.recipe}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.edgelora"
    if not (path / "bundle.json").is_file():
        progress("converting the model")
        recipe = load_recipe(case.recipe)
        chosen = ConvertOptions(
            task=recipe.task,
            pooling=recipe.pooling,
            image={**recipe.image, "size": (case.size, case.size)},
            overwrite=True,
            batch_size=case.batch_size,
            target_modules=recipe.target_modules,
            **settings,
        )
        convert(open_recipe(recipe), path, chosen)
    return path


def measured(
    case: Case, name: str, path: Path, model: Path, options: VisionOptions, folder: Path, progress: Progress
) -> Runs:
    """Every contender's runs of a round."""
    bundle = Bundle.open(path)
    epochs = 2 if name == "last" else 1
    training: dict[str, Any] = {}
    if name == "last":
        training = {"train_last": case.last, "cache": "memory"}
    jobs = [write_job(folder / str(r), case, bundle, model, options, epochs, r) for r in range(options.repeats)]
    ours = Contender(OURS, "EdgeLoRA", WORKER, {"bundle": str(path), "training": training})
    rivals = [Contender(who, title, TORCH_WORKER, settings) for who, (title, settings) in TORCH.items()]
    return alternate([ours, *rivals], jobs, folder / "runs", options.threads, progress)


def write_job(
    folder: Path, case: Case, bundle: Bundle, model: Path, options: VisionOptions, epochs: int, repeat: int
) -> Path:
    """The files of one run: random pictures, first values, and values with a B that is not zero."""
    rng = np.random.default_rng(repeat)
    count = case.batch_size * options.steps
    pixels = rng.standard_normal((count, 3, case.size, case.size), np.float32)
    images = Images(pixels, rng.integers(0, CLASSES, count))
    settings = Settings(
        bundle=str(bundle.path),
        model=str(model),
        threads=options.threads,
        epochs=epochs,
        batch_size=case.batch_size,
        learning_rate=RATE,
        max_steps=None,
    )
    order = np.stack([rng.permutation(count) for _ in range(epochs)])
    test = Images(pixels[: case.batch_size], images.labels[: case.batch_size])
    Job(folder, settings, images, test, order).write()
    prefix = bundle.manifest.prefixes
    targets = prefix[0].points if prefix else None
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    initial = new_adapter(bundle.manifest, lora, labels=tuple(map(str, range(CLASSES))), rng=rng)
    write_adapter(initial, folder / INITIAL)
    probed = {
        tensor: rng.standard_normal(x.shape, np.float32) * np.float32(PROBE_STD)
        for tensor, x in sorted(initial.tensors.items())
        if tensor.endswith(".lora_B")
    }
    write_adapter(initial.with_tensors({**initial.tensors, **probed}), folder / PROBE)
    return folder


def markdown(body: Mapping[str, Any]) -> str:
    """A table a round, and the ratios beside their aims."""
    options, machine = body["options"], body["machine"]
    blocks = [
        f"{body['case']}: batch {options['batch_size']} × 3 × {options['size']} × {options['size']}, "
        f"{options['threads']} threads, medians of {options['repeats']} runs in turn. {machine['processor']}, "
        f"{machine['cores']} cores."
    ]
    titles = {OURS: "EdgeLoRA"} | {who: title for who, (title, _) in TORCH.items()}
    for name, found in body["rounds"].items():
        rows = [_row(titles[who], name, cost) for who, cost in found["cost"].items()]
        first = "epoch after the first, s" if name == "last" else "step, ms"
        blocks.append(table([f"round {name}", first, "step, CPU ms", "peak, MiB", "cold start, s"], rows))
        for who, one in found.get("agreement", {}).items():
            worst = ", ".join(f"{at} {w['relative_error']:.1e} ({w['tensor']})" for at, w in one["gradients"].items())
            blocks.append(f"{titles[who]}: gradients differ by {worst} at most, losses by {one['loss']:.1e}.")
    ratios = [[k, "—" if r is None else f"{r:.3f}", f"≤ {AIMS[k]:g}"] for k, r in body["ratios"].items()]
    blocks.append(table(["to the best of torch's", "ratio", "aim"], ratios))
    return "\n\n".join(blocks)


def _row(title: str, name: str, cost: Mapping[str, Any]) -> Sequence[str]:
    time = f"{cost['epoch_seconds']['median']:.2f}" if name == "last" else f"{cost['step_seconds']['median'] * 1e3:.0f}"
    cpu = f"{cost['cpu_seconds']['median'] * 1e3:.0f}"
    return [title, time, cpu, f"{cost['peak_memory_mb']['median']:.0f}", f"{cost['cold_start_seconds']['median']:.2f}"]
