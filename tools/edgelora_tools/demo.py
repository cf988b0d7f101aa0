"""The main job, end to end, on a real model: two people of one home, one frozen base, an adapter each.

The desktop half runs here: fetch, convert, verify. The device half runs as the user would run it, as
`edgelora train` in a process of its own, whose peak memory is therefore the device's.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgelora.bundle import Bundle
from edgelora.check import check, store_verdict
from edgelora.cli.common import size_text, table
from edgelora.data import TextSample, read_samples
from edgelora.errors import TrainingError
from edgelora.runtime import Model
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import data_folder, fetch, load_recipe
from edgelora_tools.sources import open_source

RECIPE = "minilm-l3"
PEOPLE = ("early_bird", "night_owl")
TRAINING = {"--epochs": 12, "--batch-size": 16, "--learning-rate": 2e-3, "--rank": 8, "--lora-alpha": 16}
_SWITCHES, _SHOWN = 200, 6

Say = Callable[[str], None]
Report = dict[str, Any]


def run_demo(folder: Path, epochs: int | None, seed: int, say: Say) -> Report:
    """Fetch, convert, verify, train both people, compare, plot. Everything is written into `folder`.

    Raises:
        ConversionError, TrainingError: what went wrong, by name.
    """
    started = time.monotonic()
    recipe = load_recipe(RECIPE)
    say(f"1. the base: {recipe.name}, {recipe.description}, {recipe.licence}")
    source = fetch(recipe, lambda message: say(f"   {message}"))
    begun = time.monotonic()
    bundle_path = folder / "home.edgelora"
    shutil.rmtree(folder / "home.adapters", ignore_errors=True)
    shutil.rmtree(folder / "heads.adapters", ignore_errors=True)
    options = ConvertOptions(
        task=recipe.task, pooling=recipe.pooling, target_modules="all-linear", name=recipe.name, overwrite=True
    )
    manifest = convert(open_source(str(source)), bundle_path, options)
    bundle = Bundle.open(bundle_path)
    verdict = check(bundle)
    store_verdict(bundle, verdict)
    worst = max(point.error for point in verdict.points)
    conversion = time.monotonic() - begun
    say(
        f"2. converted and verified in {conversion:.1f} s: {len(manifest.points)} insertion points, parity "
        f"{verdict.parity:.0e}, largest gradient error {worst:.0e}"
    )
    people: dict[str, Report] = {}
    for number, person in enumerate(PEOPLE, 3):
        say(f"{number}. {person}: training on {data_path(person, 'train').name}")
        people[person] = train_person(bundle_path, folder, person, epochs, seed)
    model = Model.open(bundle_path)
    for person, other in (PEOPLE, PEOPLE[::-1]):
        people[person]["accuracy_with_other_adapter"] = accuracy(model, person, other)
    report: Report = {
        "base": manifest.name,
        "base_parameters": manifest.base_parameters,
        "conversion_seconds": conversion,
        "parity": verdict.parity,
        "largest_gradient_error": worst,
        "people": people,
        "switch_milliseconds": switch_time(model),
        "same_words": same_words(model),
        "bundle": str(bundle_path),
        "plot": str(plot(people, folder / "training.png")),
    }
    report["seconds"] = time.monotonic() - started
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def data_path(person: str, part: str) -> Path:
    """A person's utterances, "train" or "test"."""
    return data_folder("examples/two_people") / f"{person}.{part}.jsonl"


def train_person(bundle: Path, folder: Path, person: str, epochs: int | None, seed: int) -> Report:
    """Train a head on the frozen base, then head and adapter, on the same schedule and from the same seed."""
    settings = TRAINING | ({"--epochs": epochs} if epochs else {}) | {"--seed": seed}
    frozen = device_train(bundle, folder / "heads.adapters", person, settings, ["--target-modules", "none"], quiet=True)
    adapted = device_train(bundle, folder / "home.adapters", person, settings, [])
    saved = folder / "home.adapters" / person / "versions" / f"{adapted['version']:06d}"
    return {
        "samples": len(read_samples(data_path(person, "train"), "sequence-classification")),
        "held_out": len(read_samples(data_path(person, "test"), "sequence-classification")),
        "accuracy_frozen_base_fresh_head": frozen["history"][-1]["eval_accuracy"],
        "accuracy_trained": adapted["history"][-1]["eval_accuracy"],
        "adapter_bytes": sum(file.stat().st_size for file in saved.iterdir()),
        "trainable_parameters": adapted["trainable_parameters"],
        "training_seconds": adapted["seconds"],
        "step_milliseconds": 1000 * adapted["step_seconds_median"],
        "peak_memory_bytes": adapted["peak_memory_bytes"],
        "history": adapted["history"],
        "history_frozen_base": frozen["history"],
    }


def device_train(
    bundle: Path, store: Path, person: str, settings: dict[str, Any], extra: list[str], quiet: bool = False
) -> Report:
    """`edgelora train` in a fresh process; the held-out set is watched, never selected by."""
    command = [
        sys.executable,
        "-m",
        "edgelora",
        "train",
        str(bundle),
        "--adapter",
        person,
        "--store",
        str(store),
        "--json",
    ]
    command += [
        "--data",
        str(data_path(person, "train")),
        "--validation",
        str(data_path(person, "test")),
        "--keep",
        "last",
    ]
    command += [str(word) for pair in settings.items() for word in pair] + extra
    command += [] if quiet else ["--progress"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=None if not quiet else subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise TrainingError(f"`edgelora train` for {person} ended with status {done.returncode}: {done.stdout.strip()}")
    return json.loads(done.stdout)


def accuracy(model: Model, person: str, adapter: str) -> float:
    """Share of a person's held-out utterances that an adapter labels as the person means them."""
    samples = [
        s for s in read_samples(data_path(person, "test"), "sequence-classification") if isinstance(s, TextSample)
    ]
    predicted = model.predict([s.text for s in samples], adapter=adapter)
    return sum(p == s.label for p, s in zip(predicted, samples, strict=True)) / len(samples)


def switch_time(model: Model) -> float:
    """Milliseconds to activate the other person's adapter (median)."""
    times = []
    for turn in range(_SWITCHES):
        begun = time.perf_counter()
        model.activate(PEOPLE[turn % 2])
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


def same_words(model: Model) -> list[dict[str, str]]:
    """Held-out sentences that both people say, and what each adapter makes of them."""
    first, second = (
        {
            s.text: s.label
            for s in read_samples(data_path(p, "test"), "sequence-classification")
            if isinstance(s, TextSample)
        }
        for p in PEOPLE
    )
    seen: dict[tuple[str, str], str] = {}
    for text, label in first.items():
        if text in second:
            seen.setdefault((label, second[text]), text)
    texts = list(seen.values())[:_SHOWN]
    predictions = [model.predict(texts, adapter=person) for person in PEOPLE]
    return [dict(zip(("text", *PEOPLE), row, strict=True)) for row in zip(texts, *predictions, strict=True)]


def plot(people: dict[str, Report], path: Path) -> Path:
    """Held-out accuracy by epoch: adapter and head against head alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(people), figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (person, report) in zip(axes, people.items(), strict=True):
        for key, label, style in (
            ("history", "LoRA and head", "-o"),
            ("history_frozen_base", "head on the frozen base", "--s"),
        ):
            history = report[key]
            axis.plot(
                [e["epoch"] for e in history], [e["eval_accuracy"] for e in history], style, label=label, markersize=4
            )
        other = report["accuracy_with_other_adapter"]
        axis.axhline(other, color="tab:red", linestyle=":", label="the other person's adapter")
        axis.set(title=person, xlabel="epoch", ylim=(0, 1), xticks=[e["epoch"] for e in report["history"]][1::2])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"accuracy on {report['held_out']} held-out utterances")
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def report_text(report: Report) -> str:
    """The report for people."""
    people = report["people"]
    percent = [
        ("frozen base, fresh head", "accuracy_frozen_base_fresh_head"),
        ("after training", "accuracy_trained"),
        ("with the other's adapter", "accuracy_with_other_adapter"),
    ]
    rows = [(name, *(f"{100 * p[key]:.1f} %" for p in people.values())) for name, key in percent]
    rows += [
        ("adapter on disk", *(size_text(p["adapter_bytes"]) for p in people.values())),
        ("training time", *(f"{p['training_seconds']:.1f} s" for p in people.values())),
        ("step (16 utterances)", *(f"{p['step_milliseconds']:.1f} ms" for p in people.values())),
        ("peak memory of training", *(size_text(p["peak_memory_bytes"]) for p in people.values())),
    ]
    words = [(w["text"], *(w[person] for person in PEOPLE)) for w in report["same_words"]]
    return "\n".join(
        [
            "",
            table(rows, ("", *people)),
            "",
            "The same words, two meanings (held-out sentences, predicted):",
            table(words, ("", *PEOPLE)),
            "",
            f"switching adapters takes {report['switch_milliseconds']:.3f} ms; the base of "
            f"{report['base_parameters'] / 1e6:.1f} M parameters is loaded once",
            f"all of it took {report['seconds']:.0f} s; curves in {report['plot']}, figures in report.json beside it",
        ]
    )
