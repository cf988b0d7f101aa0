"""The verb that shows the main job, end to end: demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgelora.cli.common import Verbs, add_verb, desktop, emit, note


def add_verbs(verbs: Verbs) -> None:
    """Register the verb."""
    parser = add_verb(
        verbs,
        "demo",
        run_demo,
        "Two people of one home, one base: fetch, convert, train, switch.",
        "edgelora demo --output demo",
    )
    parser.add_argument("--output", "-o", type=Path, default=Path("demo"), metavar="DIR", help="where to write (demo)")
    parser.add_argument("--epochs", type=int, default=None, help="epochs per person (default: the demo's own)")
    parser.add_argument("--seed", type=int, default=0)


def run_demo(options: argparse.Namespace) -> None:
    """The main job, end to end."""
    demo = desktop("demo")
    report = demo.run_demo(options.output, options.epochs, options.seed, note)
    emit(options, report, demo.report_text(report))
