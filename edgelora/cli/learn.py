"""The verb that learns: train."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgelora.cli.adapter_options import adapter_config, add_adapter_options
from edgelora.cli.common import Verbs, add_bundle, add_format, add_verb, emit, end_progress, note, open_model
from edgelora.cli.pictures import BeforeAndAfter, drawing_task
from edgelora.cli.train_output import EpochLines, report_text
from edgelora.cli.training_options import add_training_options, training_config
from edgelora.errors import ConfigError
from edgelora.gate import Gate
from edgelora.language.samples import Preference
from edgelora.memory import peak_memory
from edgelora.samples import Sample, split
from edgelora.training import train
from edgelora.training_start import before_training


def add_verbs(verbs: Verbs) -> None:
    """Register the verb."""
    parser = add_verb(
        verbs,
        "train",
        run_train,
        "Train a person's adapter, or train it further. Killed at any moment, the same command continues.",
        "edgelora train home.edgelora --adapter user-1 --data user-1.jsonl --validation-split 0.1",
    )
    parser.set_defaults(continues=True)
    add_bundle(parser)
    parser.add_argument("--adapter", required=True, metavar="NAME", help="whose adapter: a user id")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="CSV or JSONL, of language models also plain text (.txt); - reads standard input; of pictures and sounds "
        "also a folder with a folder for each label, of boxes COCO's JSON or a folder of VOC's or YOLO's files, of "
        "masks a folder with images and masks",
    )
    add_format(parser, of_samples=True)
    parser.add_argument("--validation", metavar="FILE", help="held-out samples: the best epoch is kept")
    parser.add_argument(
        "--validation-split", type=float, default=0.0, metavar="SHARE", help="hold out this share instead"
    )
    parser.add_argument(
        "--keep", choices=("best", "last"), default="best", help="which epoch, if there is a validation (best)"
    )
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="FILE",
        help="of pictures: leave a sheet of some (held-out ones if there are any) with the truth, before and after",
    )
    parser.add_argument("--progress", action="store_true", help="show progress with --json too")
    parser.add_argument(
        "--discard", action="store_true", help="drop an unfinished training with other data or settings"
    )
    parser.add_argument("--restart", action="store_true", help="the same, and begin from a fresh adapter")
    parser.add_argument("--again", action="store_true", help="train further although this very run is done")

    gate = parser.add_argument_group(
        "gate (a version becomes current only if it is not worse than the one before, or the base)"
    )
    gate.add_argument("--held-out", metavar="FILE", help="samples to judge by, which training never sees")
    gate.add_argument("--held-out-split", type=float, metavar="SHARE", help="hold out this share of the data instead")
    gate.add_argument(
        "--gate-margin",
        type=float,
        metavar="M",
        help="by how much of the task's metric it may be worse (0); judges by the validation samples if no others are "
        "held out",
    )
    add_adapter_options(parser)
    add_training_options(parser)


def run_train(options: argparse.Namespace) -> None:
    """Train and report."""
    config = training_config(options)
    model = open_model(options)
    task = model.task
    samples = task.read(options.data, options.format)
    held_out = task.read(options.validation) if options.validation else None
    judged = task.read(options.held_out) if options.held_out else None
    if judged is None and options.held_out_split is not None:
        samples, judged = split(samples, options.held_out_split, np.random.default_rng(options.seed))
    if held_out is None and options.validation_split:
        samples, held_out = split(samples, options.validation_split, np.random.default_rng(options.seed))
    gate = chosen_gate(options.gate_margin, judged, held_out)
    lora = adapter_config(options)
    sheet = None
    if options.contact_sheet is not None:
        drawing_task(model, "--contact-sheet")
        before = before_training(model, options.adapter, samples, lora, config, options.restart)
        sheet = BeforeAndAfter(model, held_out or judged or samples, before, options.contact_sheet)
    started = time.monotonic()
    of_tokens = model.bundle.manifest.language is not None and not any(isinstance(s, Preference) for s in samples)
    show = EpochLines(options.json and not options.progress, of_tokens)
    report = train(
        model,
        options.adapter,
        samples,
        held_out,
        lora,
        config,
        restart=options.restart,
        again=options.again,
        discard=options.discard,
        callback=show,
        ram=options.ram,
        planned=lambda plan: None if show.quiet else note(plan.describe()),
        gate=gate,
    )
    end_progress()
    if sheet is not None:
        sheet.save(model.store.load(options.adapter, report.version))
    emit(
        options,
        {**report.to_dict(), "peak_memory_bytes": peak_memory()},
        report_text(report, len(samples), time.monotonic() - started, config),
    )


def chosen_gate(
    margin: float | None, judged: Sequence[Sample] | None, validation: Sequence[Sample] | None
) -> Gate | None:
    """The gate that the options ask for, if any.

    Raises:
        ConfigError: a margin, and no samples to judge by.
    """
    if margin is None and judged is None:
        return None
    samples = judged or validation
    if not samples:
        raise ConfigError(
            "--gate-margin needs samples to judge by: --held-out FILE, --held-out-split SHARE or --validation FILE"
        )
    return Gate(samples, margin or 0.0)
