"""Adapter methods beside each other: all-MiniLM-L6 learns CLINC150's intents by each, here and in PEFT.

Every method has the modules and the settings that are usual for it, and its learning rate is that with the best
accuracy on utterances of the data set's own validation part (`--rates 3` tries them again). A seed chooses the training
texts, the first values and the order. Ours is a fresh process of `edgelora train`; PEFT's begins at the same values and
takes the same batches, rate, schedule, clipping and head. Parameters are those that learn, without the head, which all
have; a step is the median over a run, its ratio that to our LoRA's of the same seed; peaks are VmHWM.

What was measured is kept in the file of `--json` run by run: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clinc import (
    RECIPE,
    TEST_TEXTS,
    ClincOptions,
    Utterances,
    cached_bundle,
    find_data,
    read_clinc,
    source_digest,
)
from benchmarks.kept_runs import KeptRuns
from benchmarks.measure import ROOT, BenchmarkError, process_environment
from benchmarks.methods_peft import train_in_peft
from benchmarks.methods_report import OURS, PEFT, best_rate, rows
from edgelora.errors import EdgeLoraError
from edgelora.store import AdapterStore
from edgelora_tools.recipes import fetch, load_recipe

ATTENTION = ("query", "value")
RESCALED = ("key", "value", "output.dense")  # PEFT's for BERT
BOTTLENECKS = ("attention.output.dense", "output.dense")  # Houlsby's for BERT
ADAPTER = "a"
BATCH = 30  # of 150 intents' texts there are as many of each: all batches are full


@dataclass(frozen=True)
class Entry:
    """A method: how it is called, its modules, the graphs that it needs, its options, its learning rates.

    The best rate stands first. `peft` is whether PEFT runs beside it, `places` where its adapters stand, if that is not
    its modules.
    """

    title: str
    targets: tuple[str, ...] | str
    graphs: tuple[str, ...]
    options: tuple[str, ...]
    rates: tuple[float, ...]
    peft: bool = False
    places: str = ""

    @property
    def modules(self) -> str:
        """Where its adapters stand, in words."""
        return self.places or (self.targets if isinstance(self.targets, str) else ", ".join(self.targets))


LOW_RANK = ("--rank", "8", "--lora-alpha", "16")
METHODS: dict[str, Entry] = {
    "head": Entry("head alone", ATTENTION, (), ("--target-modules", "none"), (5e-3, 1e-2, 2e-2), places="none"),
    "lora": Entry("LoRA", ATTENTION, (), LOW_RANK, (5e-3, 2e-3, 1e-2), peft=True),
    "rslora": Entry("rsLoRA", ATTENTION, (), (*LOW_RANK, "--rslora"), (3e-3, 2e-3, 5e-3)),
    "loraplus": Entry("LoRA+, ratio 4", ATTENTION, (), (*LOW_RANK, "--loraplus-lr-ratio", "4"), (3e-3, 2e-3, 5e-3)),
    "lora-fa": Entry("LoRA-FA", ATTENTION, (), (*LOW_RANK, "--lora-fa"), (5e-3, 2e-3, 1e-2)),
    "pissa": Entry("PiSSA", ATTENTION, (), (*LOW_RANK, "--init", "pissa"), (2e-3, 1e-3, 5e-3)),
    "dora": Entry("DoRA", ATTENTION, ("dora",), ("--method", "dora", *LOW_RANK), (5e-3, 2e-3, 1e-2)),
    "vera": Entry("VeRA, rank 256", ATTENTION, (), ("--method", "vera"), (1e-2, 5e-3, 2e-2)),
    "ia3": Entry(
        "IA³",
        RESCALED,
        ("ia3",),
        ("--method", "ia3", "--feedforward-modules", "output.dense"),
        (1e-2, 5e-3, 2e-2),
        peft=True,
    ),
    "layer-norm": Entry(
        "layer norms",
        ATTENTION,
        ("layer-norm",),
        ("--method", "layer-norm"),
        (5e-3, 1e-2, 2e-3),
        places="all normalizations",
    ),
    "bitfit": Entry("BitFit", "all-linear", ("bitfit",), ("--method", "bitfit"), (5e-3, 1e-2, 3e-3)),
    "bottleneck": Entry(
        "bottlenecks of 24",
        BOTTLENECKS,
        ("bottleneck",),
        ("--method", "bottleneck", "--rank", "24"),
        (5e-3, 2e-3, 1e-2),
    ),
    "prompt": Entry(
        "prompt tuning, 20 tokens",
        ATTENTION,
        ("prompt",),
        ("--method", "prompt", "--num-virtual-tokens", "20"),
        (1e-2, 5e-3, 3e-2),
        peft=True,
        places="before the text",
    ),
    "prefix": Entry(
        "prefix tuning, 20 tokens",
        ATTENTION,
        ("prefix",),
        ("--method", "prefix", "--num-virtual-tokens", "20"),
        (1e-2, 5e-3, 3e-2),
        peft=True,
        places="keys and values",
    ),
    "full": Entry("full fine-tuning", ATTENTION, ("full",), ("--method", "full"), (2e-3, 1e-3, 4e-3)),
}


@dataclass(frozen=True)
class MethodsOptions:
    """What the command line chooses. `only` are the methods to run now; LoRA, to which steps are compared, always runs.

    `keep` is the file in which runs are kept, and from which those of an earlier call are taken. `rates` is how many
    learning rates of each method are tried, `peft` whether PEFT runs.
    """

    only: tuple[str, ...] = tuple(METHODS)
    epochs: int = 10
    per_intent: int = 10
    seeds: tuple[int, ...] = (0,)
    rates: int = 1
    threads: int = 2
    peft: bool = True
    quick: bool = False
    keep: Path | None = None

    def data(self, seed: int) -> ClincOptions:
        """The data of a seed."""
        options = ClincOptions(epochs=self.epochs, per_intent=self.per_intent, seed=seed)
        return options.quick() if self.quick else options


def run(options: MethodsOptions, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run what is asked for and not yet kept; a row for every method that was ever run.

    Raises:
        BenchmarkError: the data or the model cannot be had, a run failed, or the file holds runs under other settings.
    """
    data = options.data(0)
    settings = {
        **{name: getattr(data, name) for name in ("epochs", "per_intent", "max_steps")},
        "batch_size": BATCH,
        "threads": options.threads,
        "test_texts": data.test_texts or TEST_TEXTS,
        "source": source_digest(),
    }
    kept = KeptRuns(settings, options.keep)
    names = list(dict.fromkeys(("lora", *options.only)))
    try:
        model = fetch(load_recipe(RECIPE), progress)
        for seed in options.seeds:
            with tempfile.TemporaryDirectory(prefix="edgelora-methods-") as folder:
                _run_seed(Seed.prepare(seed, options, model, Path(folder), progress), names, kept)
    except EdgeLoraError as error:
        raise BenchmarkError(str(error)) from error
    known = [run for name in METHODS for run in kept.runs.values() if run["method"] == name]
    return {"case": "methods", "settings": kept.settings, "runs": kept.runs, "rows": rows(known)}


def _run_seed(seed: Seed, names: Sequence[str], kept: KeptRuns) -> None:
    """Ours, the methods in turn, rate after rate; then PEFT, at the rate that is best for ours."""
    needed = ("held_out_accuracy",) if seed.options.rates > 1 else ()
    for turn in range(seed.options.rates):
        for name in names if turn % 2 == 0 else reversed(names):
            rate = METHODS[name].rates[turn % len(METHODS[name].rates)]
            known = [run for run in kept.runs.values() if run["method"] == name and run.get("held_out_accuracy")]
            if seed.options.rates == 1 and known:
                rate = best_rate(known, name)
            kept.get(f"{name} {OURS} {seed.number} {rate:g}", partial(seed.ours, name, rate), needed)
    for name in names:
        if METHODS[name].peft and seed.options.peft:
            rate = best_rate(list(kept.runs.values()), name)
            kept.get(f"{name} {PEFT} {seed.number} {rate:g}", partial(seed.in_peft, name, rate))


@dataclass(frozen=True)
class Seed:
    """The runs of one seed. Its texts, and those held out, lie in `folder` as the command reads them."""

    number: int
    options: MethodsOptions
    model: Path
    folder: Path
    intents: tuple[str, ...]
    train: Utterances
    test: Utterances
    progress: Callable[[str], None]

    @classmethod
    def prepare(
        cls, number: int, options: MethodsOptions, model: Path, folder: Path, progress: Callable[[str], None]
    ) -> Seed:
        """Choose the texts and write them."""
        intents, train, test = read_clinc(find_data(), options.data(number))
        for part, lines in (
            ("train", zip(train.texts, (intents[i] for i in train.labels), strict=True)),
            ("held-out", _held_out(find_data(), options.data(number).test_texts)),
            ("test", zip(test.texts, (intents[i] for i in test.labels), strict=True)),
        ):
            text = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in lines)
            (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")
        return cls(number, options, model, folder, intents, train, test, progress)

    def ours(self, name: str, rate: float) -> dict[str, Any]:
        """Train in a fresh process, and evaluate; on what is held out too where rates are tried."""
        options, store = self.options, self.folder / f"{name}-{rate:g}"
        command = self._command(name, rate, store)
        _, *common = command[: command.index("--data")]
        self._say(name, OURS, rate)
        report = _edgelora(command, options.threads)
        scores = {
            part: _edgelora(["eval", *common, "--data", str(self.folder / f"{part}.jsonl")], options.threads)[
                "accuracy"
            ]
            for part in ("test", *(("held-out",) if options.rates > 1 else ()))
        }
        stored = AdapterStore(store)
        tensors, size = stored.load(ADAPTER).tensors, stored.show(ADAPTER).size
        head = sum(tensor.size for name, tensor in tensors.items() if name.startswith("classifier."))
        shutil.rmtree(store)
        return self._run(name, OURS) | {
            "learning_rate": rate,
            "test_accuracy": scores["test"],
            "held_out_accuracy": scores.get("held-out"),
            "train_loss": report["history"][-1]["train_loss"],
            "parameters": report["trainable_parameters"] - head,
            "step_seconds": report["step_seconds_median"],
            "peak_memory_mb": report["peak_memory_bytes"] / 1e6,
            "file_bytes": size - 4 * head,
        }

    def in_peft(self, name: str, rate: float) -> dict[str, Any]:
        """The same run by PEFT."""
        self._say(name, PEFT, rate)
        command, job = self._command(name, rate, self.folder / "store"), self.folder / f"{name}-{PEFT}"
        data, threads = (self.train, self.test), self.options.threads
        return self._run(name, PEFT) | train_in_peft(job, command, self.model, data, self.intents, threads)

    def _command(self, name: str, rate: float, store: Path) -> list[str]:
        entry, threads, steps = METHODS[name], str(self.options.threads), self.options.data(0).max_steps
        further = {"methods": entry.graphs} if entry.graphs else None
        bundle = cached_bundle(self.model, entry.targets, self.progress, further)
        return [
            *("train", str(bundle), "--store", str(store), "--adapter", ADAPTER, "--threads", threads, "--json"),
            *("--data", str(self.folder / "train.jsonl"), "--epochs", str(self.options.data(0).epochs)),
            *("--batch-size", str(BATCH), "--lr", str(rate), "--seed", str(self.number)),
            *(() if steps is None else ("--max-steps", str(steps))),
            *entry.options,
        ]

    def _run(self, name: str, side: str) -> dict[str, Any]:
        entry = METHODS[name]
        return {"method": name, "side": side, "seed": self.number, "title": entry.title, "modules": entry.modules}

    def _say(self, name: str, side: str, rate: float) -> None:
        who = METHODS[name].title + (", PEFT" if side == PEFT else "")
        self.progress(f"{who}, learning rate {rate:g}, seed {self.number}")


def _held_out(path: Path, count: int | None) -> list[tuple[str, str]]:
    """The validation part, or so many of its utterances."""
    with zipfile.ZipFile(path) as archive:
        part = json.loads(archive.read("data/data_full.json"))["val"]
    chosen = np.random.default_rng(0).permutation(len(part))[:count]
    return [(part[int(i)][0], part[int(i)][1]) for i in sorted(chosen)]


def _edgelora(arguments: Sequence[str], threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgelora", *arguments]
    done = subprocess.run(
        command, env=process_environment(threads), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"edgelora {arguments[0]} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)
