"""What the examples on masks and points do alike: a head alone, then LoRA with such a head, by the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import edgelora as el
from edgelora.cli import main as edgelora

ADAPTERS = {"head alone": ["--target-modules", "none"], "LoRA": ["--rank", "8"]}


def run(*command: object) -> None:
    """An edgelora command; the script ends where it fails."""
    words = [str(word) for word in command]
    print("edgelora", *words, flush=True)
    if status := edgelora(words):
        sys.exit(status)


def learn_both(bundle: Path, train: Path, test: Path, settings: Sequence[str], measure: str) -> dict[str, list[float]]:
    """Train and evaluate both adapters, with a sheet of each beside the bundle; the measure on `test` by epoch."""
    curves: dict[str, list[float]] = {}
    for title, own in ADAPTERS.items():
        name = title.replace(" ", "-")
        sheet = ["--contact-sheet", bundle.with_name(f"{name}.png")]
        run("train", bundle, "--adapter", name, "--data", train, "--validation", test, *own, *settings, *sheet)
        run("eval", bundle, "--adapter", name, "--data", test)
        history = el.Model.open(bundle).store.load(name).training["history"]
        curves[title] = [epoch[f"eval_{measure}"] for epoch in history]
    return curves
