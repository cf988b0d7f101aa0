"""A run of `edgelora train` as PEFT makes it: the same first values, batches, rate, schedule, clipping and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clinc import PEFT, Utterances
from benchmarks.job import INITIAL, Job, Settings, Texts
from benchmarks.measure import BenchmarkError, Run, run_in_turns
from edgelora.adapter import new_adapter, write_adapter
from edgelora.batching import epoch_batches
from edgelora.bundle import Bundle
from edgelora.cli.adapter_options import adapter_config
from edgelora.cli.main import build_parser
from edgelora.cli.training_options import training_config
from edgelora.config import LoraConfig
from edgelora.text import TextEncoder


def train_in_peft(
    folder: Path,
    command: Sequence[str],
    model: Path,
    data: tuple[Utterances, Utterances],
    intents: tuple[str, ...],
    threads: int,
) -> dict[str, Any]:
    """What `edgelora COMMAND` would learn from the first part of `data`, by PEFT, evaluated on the second.

    `folder` is for the files of the run; `intents` are the names of the labels' numbers.

    Raises:
        BenchmarkError: PEFT failed.
    """
    options = build_parser().parse_args(list(command))
    config, bundle = training_config(options), Bundle.open(options.bundle)
    manifest = bundle.manifest
    encoder = TextEncoder(bundle.path, manifest.preprocessing, manifest.inputs)
    train, test = (
        Texts.of([ids.tolist() for ids in encoder.tokens(part.texts)], part.labels, encoder.pad_id) for part in data
    )
    size = config.batch_size
    if len(train) % size:
        raise BenchmarkError(f"{len(train)} texts are no batches of {size}: a job has one short batch at its end alone")
    settings = Settings(
        bundle=str(bundle.path),
        model=str(model),
        threads=threads,
        epochs=config.num_train_epochs,
        batch_size=size,
        learning_rate=config.learning_rate,
        max_steps=config.max_steps,
        pad_id=encoder.pad_id,
    )
    order = [
        np.concatenate(epoch_batches(train.lengths(), size, config.seed, epoch, config.group_by_length))
        for epoch in range(config.num_train_epochs)
    ]
    Job(folder, settings, train, test, np.stack(order)).write()
    chosen = adapter_config(options) or LoraConfig(r=8, lora_alpha=16)
    rng = np.random.default_rng(config.seed)
    write_adapter(new_adapter(manifest, chosen, intents, rng=rng, base=bundle), folder / INITIAL)
    peft = replace(PEFT, options={"max_grad_norm": config.max_grad_norm, "last_epoch_alone": True})
    (run,) = run_in_turns([peft], folder, folder / "result", threads)
    assert isinstance(run, Run)
    made = run.result
    return {
        "learning_rate": config.learning_rate,
        "test_accuracy": made["accuracy"][-1],
        "train_loss": float(np.mean(made["losses"][-len(train) // size :])),
        "step_seconds": float(np.median(made["step_seconds"][1:] or made["step_seconds"])),
        "peak_memory_mb": made["peak_memory_mb"] * (1 << 20) / 1e6,
    }
