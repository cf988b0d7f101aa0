"""Adapter methods beside each other: all-MiniLM-L6 learns CLINC150's intents by each, through the command line.

Every method has the modules and the settings that are usual for it, and is tried at several learning rates; that with
the best accuracy on held-out utterances of the data set's own validation part is the one whose test accuracy counts.
Every run is a fresh process of `edgelora train`; the methods take turns, rate after rate. Parameters are those that
learn, without the head, which all have; a step is the median over a run, its ratio that of the medians to LoRA's in the
same turn; peaks are VmHWM.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clinc import RECIPE, ClincOptions, cached_bundle, find_data, read_clinc
from benchmarks.measure import ROOT, BenchmarkError, process_environment
from benchmarks.report import table
from edgelora.errors import EdgeLoraError
from edgelora.store import AdapterStore
from edgelora_tools.recipes import fetch, load_recipe

ATTENTION = ("query", "value")
RESCALED = ("key", "value", "output.dense")  # PEFT's for BERT
ADAPTER = "a"


@dataclass(frozen=True)
class Entry:
    """A method: how it is called, its modules, the graphs that it needs, its options, the learning rates to try."""

    title: str
    targets: tuple[str, ...] | str
    graphs: tuple[str, ...]
    options: tuple[str, ...]
    rates: tuple[float, ...]


LOW_RANK = ("--rank", "8", "--lora-alpha", "16")
METHODS: dict[str, Entry] = {
    "lora": Entry("LoRA", ATTENTION, (), LOW_RANK, (2e-3, 1e-3, 4e-3)),
    "rslora": Entry("rsLoRA", ATTENTION, (), (*LOW_RANK, "--rslora"), (2e-3, 1e-3, 4e-3)),
    "loraplus": Entry("LoRA+, ratio 4", ATTENTION, (), (*LOW_RANK, "--loraplus-lr-ratio", "4"), (1e-3, 5e-4, 2e-3)),
    "lora-fa": Entry("LoRA-FA", ATTENTION, (), (*LOW_RANK, "--lora-fa"), (2e-3, 1e-3, 4e-3)),
    "dora": Entry("DoRA", ATTENTION, ("dora",), ("--method", "dora", *LOW_RANK), (2e-3, 1e-3, 4e-3)),
    "vera": Entry("VeRA, rank 256", ATTENTION, (), ("--method", "vera"), (1e-2, 5e-3, 2e-2)),
    "ia3": Entry(
        "IA³", RESCALED, ("ia3",), ("--method", "ia3", "--feedforward-modules", "output.dense"), (1e-2, 5e-3, 2e-2)
    ),
    "bitfit": Entry("BitFit", "all-linear", ("bitfit",), ("--method", "bitfit"), (1e-2, 5e-3, 2e-2)),
}


def run(
    names: Sequence[str], epochs: int, rates: int, threads: int, quick: bool, progress: Callable[[str], None]
) -> dict[str, Any]:
    """A row for each of `names`, and for LoRA, to which steps are compared.

    Raises:
        BenchmarkError: the data or the model cannot be had, or the command failed.
    """
    names = list(dict.fromkeys(("lora", *names)))
    options = ClincOptions().quick() if quick else ClincOptions()
    intents, train, test = read_clinc(find_data(), options)
    try:
        model = fetch(load_recipe(RECIPE), progress)
        bundles = {name: _bundle(model, METHODS[name], progress) for name in names}
    except EdgeLoraError as error:
        raise BenchmarkError(str(error)) from error
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="edgelora-methods-") as folder:
        held_out = _held_out(find_data(), len(test.texts))
        files = {
            "train": [(text, intents[label]) for text, label in zip(train.texts, train.labels, strict=True)],
            "held-out": held_out,
            "test": [(text, intents[label]) for text, label in zip(test.texts, test.labels, strict=True)],
        }
        for part, rows in files.items():
            lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
            (Path(folder) / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        for turn in range(rates):
            for name in names if turn % 2 == 0 else reversed(names):
                entry = METHODS[name]
                rate = entry.rates[turn % len(entry.rates)]
                progress(f"{entry.title}, learning rate {rate:g}")
                steps = options.max_steps
                runs[name].append(_train(bundles[name], Path(folder), entry, rate, epochs, steps, threads))
    return {
        "case": "methods",
        "epochs": epochs,
        "training_texts": len(train.texts),
        "test_texts": len(test.texts),
        "rows": [_row(name, runs[name], runs["lora"]) for name in names],
    }


def _bundle(model: Path, entry: Entry, progress: Callable[[str], None]) -> Path:
    further = {"methods": entry.graphs} if entry.graphs else None
    return cached_bundle(model, entry.targets, progress, further)


def _held_out(path: Path, count: int) -> list[tuple[str, str]]:
    """Utterances of the validation part, as many as are tested at most."""
    with zipfile.ZipFile(path) as archive:
        part = json.loads(archive.read("data/data_full.json"))["val"]
    chosen = np.random.default_rng(0).permutation(len(part))[:count]
    return [(part[int(i)][0], part[int(i)][1]) for i in sorted(chosen)]


def _train(
    bundle: Path, folder: Path, entry: Entry, rate: float, epochs: int, steps: int | None, threads: int
) -> dict[str, Any]:
    """Train, and evaluate on both other parts."""
    with tempfile.TemporaryDirectory(prefix="edgelora-methods-") as store:
        common = (str(bundle), "--store", store, "--adapter", ADAPTER, "--threads", str(threads), "--json")
        command = ("train", *common, "--data", str(folder / "train.jsonl"), "--epochs", str(epochs), "--lr", str(rate))
        limit = () if steps is None else ("--max-steps", str(steps))
        report = _edgelora((*command, *limit, *entry.options), threads)
        scores = {
            part: _edgelora(("eval", *common, "--data", str(folder / f"{part}.jsonl")), threads)["accuracy"]
            for part in ("held-out", "test")
        }
        adapter = AdapterStore(store).load(ADAPTER)
        size = AdapterStore(store).show(ADAPTER).size
    head = sum(tensor.size for name, tensor in adapter.tensors.items() if name.startswith("classifier."))
    return {
        "learning_rate": rate,
        "held_out_accuracy": scores["held-out"],
        "test_accuracy": scores["test"],
        "parameters": report["trainable_parameters"] - head,
        "step_seconds": report["step_seconds_median"],
        "peak_memory_mb": report["peak_memory_bytes"] / 1e6,
        "file_bytes": size - 4 * head,
    }


def _edgelora(arguments: Sequence[str], threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgelora", *arguments]
    done = subprocess.run(
        command, env=process_environment(threads), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"edgelora {arguments[0]} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def _row(name: str, runs: Sequence[Mapping[str, Any]], lora: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    best = max(runs, key=lambda run: run["held_out_accuracy"])
    ratios = [ours["step_seconds"] / theirs["step_seconds"] for ours, theirs in zip(runs, lora, strict=True)]
    return {
        "method": name,
        "title": METHODS[name].title,
        "targets": METHODS[name].targets,
        **{key: best[key] for key in ("learning_rate", "test_accuracy", "parameters", "file_bytes")},
        "step_seconds": float(np.median([run["step_seconds"] for run in runs])),
        "step_ratio": float(np.median(ratios)),
        "peak_memory_mb": float(np.median([run["peak_memory_mb"] for run in runs])),
        "runs": [dict(run) for run in runs],
    }


def markdown(body: Mapping[str, Any]) -> str:
    """The table."""
    rows = [
        [
            row["title"],
            row["targets"] if isinstance(row["targets"], str) else ", ".join(row["targets"]),
            f"{100 * row['test_accuracy']:.1f}",
            f"{row['learning_rate']:g}",
            f"{row['parameters']:,}",
            f"{1000 * row['step_seconds']:.0f}",
            f"{row['step_ratio']:.2f}",
            f"{row['peak_memory_mb']:.0f}",
            f"{row['file_bytes'] / 1000:.0f}",
        ]
        for row in body["rows"]
    ]
    header = (
        "method", "modules", "accuracy %", "rate", "parameters", "step ms", "to LoRA", "peak MB", "adapter kB",
    )  # fmt: skip
    told = (
        f"all-MiniLM-L6 on CLINC150, {body['training_texts']:,} training texts, {body['epochs']} epochs, batch 32, "
        f"{body['test_texts']:,} test texts; parameters and bytes without the head"
    )
    return f"{told}\n\n{table(header, rows)}"


def plot(body: Mapping[str, Any], path: Path) -> None:
    """Accuracy against the parameters that learn, the step's time as the size of the mark."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in body["rows"]:
        axes.scatter(row["parameters"], 100 * row["test_accuracy"], s=60 * row["step_ratio"])
        place = (row["parameters"], 100 * row["test_accuracy"])
        axes.annotate(row["title"], place, textcoords="offset points", xytext=(6, 5))
    axes.set(xscale="log", xlabel="trained parameters, without the head", ylabel="test accuracy, %")
    figure.savefig(path, dpi=120)
    plt.close(figure)
