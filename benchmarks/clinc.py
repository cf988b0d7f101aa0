"""The case `clinc`: all-MiniLM-L6 learns CLINC150's 150 intents from a few utterances of each.

LoRA of rank 8 and alpha 16 under a mean-pooled new head, AdamW, the rate falling linearly, no clipping,
no dropout. Initial values, data, order and batches are files that both sides read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.first_values import write_first_values
from benchmarks.job import Job, Settings, Texts
from benchmarks.measure import (
    ROOT,
    BenchmarkError,
    Contender,
    agreement,
    alternate,
    paired_step_ratio,
    ratios,
    summarize,
)
from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.errors import EdgeLoraError
from edgelora.files import write_atomic
from edgelora.text import TextEncoder
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import cache_folder, fetch, load_recipe
from edgelora_tools.sources import open_source

EDGELORA = Contender("edgelora", "EdgeLoRA", "benchmarks.worker_edgelora")
PEFT = Contender("peft", "PEFT", "benchmarks.worker_peft")
CONTENDERS = (EDGELORA, PEFT)
RECIPE = "minilm-l6"
RANK, ALPHA, LEARNING_RATE = 8, 16, 2e-3
THRESHOLD = 0.85
TEST_TEXTS = 4500
COMPARED_STEPS = 50
PROBE_STD = 0.02
DAY = 86400.0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ClincOptions:
    """What the command line chooses. `max_steps` and `test_texts` cut a run short.

    `micro_batch_size` makes EdgeLoRA cut each batch by length, as its trainer can: the same gradients with
    less padding. Without it both sides pad every batch to its longest text.
    """

    epochs: int = 10
    repeats: int = 3
    per_intent: int = 10
    targets: tuple[str, ...] | str = ("query", "value")
    batch_size: int = 32
    micro_batch_size: int | None = None
    threads: int = 2
    seed: int = 0
    max_steps: int | None = None
    test_texts: int | None = None

    def quick(self) -> ClincOptions:
        """A smoke run: a few steps of one epoch, once."""
        return replace(self, epochs=1, repeats=1, per_intent=2, max_steps=6, test_texts=64)


@dataclass(frozen=True)
class Utterances:
    """Texts and the index of their intents."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


def run(options: ClincOptions, progress: Progress) -> dict[str, Any]:
    """Prepare, run the contenders in turn, and return the report's body.

    Raises:
        BenchmarkError: the data or the model cannot be had, or a contender failed.
    """
    intents, train, test = read_clinc(find_data(), options)
    try:
        model = fetch(load_recipe(RECIPE), progress)
        bundle = Bundle.open(cached_bundle(model, options.targets, progress))
    except EdgeLoraError as error:
        raise BenchmarkError(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="edgelora-benchmark-") as folder:
        jobs = [
            write_job(Path(folder) / f"job-{repeat}", options, bundle, model, (train, test), intents, repeat)
            for repeat in range(options.repeats)
        ]
        runs = alternate(CONTENDERS, jobs, Path(folder), options.threads, progress)
    summaries = {c.name: summarize(runs[c.name], THRESHOLD) for c in CONTENDERS}
    return {
        "case": "clinc",
        "options": asdict(options),
        "training_texts": len(train.texts),
        "test_texts": len(test.texts),
        "threshold": THRESHOLD,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "contenders": {
            c.name: {
                "title": c.title,
                "summary": summaries[c.name],
                "runs": [dict(run.result) for run in runs[c.name]],
            }
            for c in CONTENDERS
        },
        "ratios": ratios(summaries[EDGELORA.name], summaries[PEFT.name]),
        "paired_step_ratio": paired_step_ratio(runs[EDGELORA.name], runs[PEFT.name]),
        "agreement": agreement(runs[EDGELORA.name], runs[PEFT.name], COMPARED_STEPS),
    }


def find_data() -> Path:
    """`clinc150.zip` in $EDGELORA_DATA, or in ../shared/data beside the checkout.

    Raises:
        BenchmarkError: it is in neither.
    """
    configured = os.environ.get("EDGELORA_DATA")
    folder = Path(configured) if configured else ROOT.parent / "shared" / "data"
    path = folder / "clinc150.zip"
    if not path.is_file():
        raise BenchmarkError(f"{path} is missing; say where clinc150.zip lies by EDGELORA_DATA=FOLDER")
    return path


def read_clinc(path: Path, options: ClincOptions) -> tuple[tuple[str, ...], Utterances, Utterances]:
    """(intents, training, test): a seeded choice of utterances of each intent, in the file's order; all test ones."""
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data/data_full.json"))
    intents = tuple(sorted({intent for _, intent in data["train"]}))
    rng = np.random.default_rng(options.seed)
    places = {intent: [i for i, (_, other) in enumerate(data["train"]) if other == intent] for intent in intents}
    few = [intent for intent, found in places.items() if len(found) < options.per_intent]
    if few:
        raise BenchmarkError(f"fewer than {options.per_intent} utterances of {', '.join(few[:3])}: ask for fewer")
    chosen = sorted(int(i) for found in places.values() for i in rng.choice(found, options.per_intent, replace=False))
    test = data["test"]
    if options.test_texts is not None:
        test = [test[int(i)] for i in sorted(rng.choice(len(test), options.test_texts, replace=False))]
    return intents, _utterances([data["train"][i] for i in chosen], intents), _utterances(test, intents)


def _utterances(pairs: Sequence[Sequence[str]], intents: Sequence[str]) -> Utterances:
    index = {intent: i for i, intent in enumerate(intents)}
    return Utterances(tuple(text for text, _ in pairs), tuple(index[intent] for _, intent in pairs))


def cached_bundle(
    model: Path, targets: tuple[str, ...] | str, progress: Progress, conversion: Mapping[str, Any] | None = None
) -> Path:
    """The model's bundle for these targets, converted anew whenever the converter's source has changed.

    `conversion` holds further fields of ConvertOptions. A quantized base is calibrated on the training texts.
    """
    folder = cache_folder() / "benchmarks"
    further = dict(conversion or {})
    if further.get("quantize") is not None:
        further["calibration"] = write_calibration(folder / "calibration.jsonl")
    what = repr((RECIPE, targets, sorted(further.items()), source_digest()))
    bundle = folder / f"{RECIPE}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.edgelora"
    if not (bundle / "bundle.json").is_file():
        progress("converting the model")
        chosen: dict[str, Any] = {"target_modules": targets, "overwrite": True} | further
        convert(open_source(str(model)), bundle, ConvertOptions(**chosen))
    bundle.touch()
    for other in folder.glob(f"{RECIPE}-*.edgelora"):
        if time.time() - other.stat().st_mtime > DAY:
            shutil.rmtree(other, ignore_errors=True)
    return bundle


def source_digest() -> str:
    """What tells one state of the packages' source from another."""
    source = hashlib.sha256()
    for package in ("tools/edgelora_tools", "edgelora"):
        for path in sorted((ROOT / package).rglob("*.py")):
            source.update(path.read_bytes())
    return source.hexdigest()


def write_calibration(path: Path) -> Path:
    """The training texts of the usual choice, shuffled, as samples of the task."""
    intents, train, _ = read_clinc(find_data(), ClincOptions())
    order: Sequence[int] = np.random.default_rng(0).permutation(len(train.texts)).tolist()
    rows = ({"text": train.texts[i], "label": intents[train.labels[i]]} for i in order)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(one) + "\n" for one in rows).encode())
    return path


def write_job(
    folder: Path,
    options: ClincOptions,
    bundle: Bundle,
    model: Path,
    data: tuple[Utterances, Utterances],
    intents: tuple[str, ...],
    repeat: int,
    layers: tuple[int, ...] | None = None,
    everywhere: bool = False,
) -> Path:
    """The files of one run; initial values and order change from repeat to repeat.

    `layers` limits the adapters; with `everywhere` they are at every point of the bundle.
    """
    manifest = bundle.manifest
    encoder = TextEncoder(bundle.path, manifest.preprocessing, manifest.inputs)
    settings = Settings(
        bundle=str(bundle.path),
        model=str(model),
        threads=options.threads,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=LEARNING_RATE,
        max_steps=options.max_steps,
        pad_id=encoder.pad_id,
        micro_batch_size=options.micro_batch_size,
    )
    train, test = (
        Texts.of([ids.tolist() for ids in encoder.tokens(part.texts)], part.labels, encoder.pad_id) for part in data
    )
    rng = np.random.default_rng([options.seed, repeat])
    order = np.stack([rng.permutation(len(train)) for _ in range(options.epochs)])
    Job(folder, settings, train, test, order).write()
    targets = None if everywhere else options.targets
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, layers_to_transform=layers)
    initial = new_adapter(manifest, lora, labels=intents, rng=rng)
    write_first_values(folder, initial, rng, PROBE_STD)
    return folder


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
