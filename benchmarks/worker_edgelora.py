"""One training run by EdgeLoRA, on the device package and numpy alone.

Options: `bundle` (else the job's), and `session` and `training`, settings by the names of SessionSettings and
TrainingConfig, and `ram`, a memory budget in bytes as of `edgelora train --ram`. `padded`: parts of a batch are as
wide as the batch, as they are for a rival that computes it in one. Of a language model the loss of the held-out rows
is measured after training, in nats a token, and the plan for `ram` is told.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgelora
from benchmarks.boxes import Boxes
from benchmarks.job import (
    INITIAL,
    PROBE,
    Images,
    Job,
    Recorder,
    Texts,
    TokenRows,
    worker_arguments,
    worker_options,
)
from edgelora import Bundle, SessionSettings, Trainer, TrainingConfig
from edgelora.adapter import Adapter, read_adapter
from edgelora.language.objective import LanguageModeling
from edgelora.language.packing import row_of
from edgelora.memory_plan import follow, plan_memory
from edgelora.objectives import Array, Classification, Objective, OwnLoss
from edgelora.session import ENGINE_VERSION


class Padded(Classification):
    """Texts that all cost the same, as they do once they are padded to one width."""

    def lengths(self) -> NDArray[np.int64]:
        return np.ones(len(self), np.int64)


class Objects(OwnLoss):
    """Boxes to learn, a picture by itself."""

    separable = True

    def __init__(self, images: Images, size: tuple[int, int]) -> None:
        assert images.boxes is not None
        boxes = Boxes(images.boxes, images.labels, size)

        def loss(outputs: Mapping[str, Array], rows: NDArray[np.int64]) -> tuple[float, Mapping[str, Array]]:
            ((name, made),) = outputs.items()
            value, slope = boxes.loss(made.astype(np.float32, copy=False), rows)
            return value, {name: slope}

        super().__init__(images, loss)


def main() -> None:
    folder, destination, started = worker_arguments()
    job = Job.read(folder)
    options = worker_options()
    record = Recorder("EdgeLoRA", job, started)
    settings = SessionSettings(**{"threads": job.settings.threads, **options.get("session", {})})
    bundle = Bundle.open(options.get("bundle", job.settings.bundle), settings)
    usual = {
        "num_train_epochs": job.settings.epochs,
        "max_steps": job.settings.max_steps,
        "batch_size": job.settings.batch_size,
        "micro_batch_size": job.settings.micro_batch_size,
        "learning_rate": job.settings.learning_rate,
        "max_grad_norm": 0.0,
    }
    config = TrainingConfig(**(usual | options.get("training", {})))
    objective = objective_of(job, bool(options.get("padded")))
    writes = isinstance(objective, LanguageModeling)
    trainer = Trainer(bundle, adapter(folder / INITIAL, bundle), objective, config)
    plan = None
    if "ram" in options:
        held_out = None if writes else Classification(job.test, job.test.labels)
        plan = plan_memory(trainer, held_out, options["ram"])
        follow(plan, trainer)
    batches = job.batches()
    snapshots: list[NDArray[np.float32]] = []
    for step, rows in enumerate(batches):
        if options.get("padded") and isinstance(job.train, Texts):
            job.train.least_width = int(job.train.lengths()[rows].max())
        record.begin_step()
        loss = trainer.step(rows).loss
        record.end_step(loss)
        if step == 0:
            record.keep_gradients(INITIAL, disk_gradients(trainer))
        if job.ends_epoch(step):
            snapshots.append(trainer.flat.copy())
        record.next_turn()
    record.end_training()
    further: dict[str, Any] = {}
    if writes:
        loss = trainer.evaluate(language_modeling(job.test), batch_size=1)["loss"]
        further = {"held_out_loss": loss, "plan": None if plan is None else plan.to_dict()}
    if writes or isinstance(objective, OwnLoss):
        snapshots.clear()
    if plan is not None:
        accuracies = [planned_accuracy(trainer, flat, job) for flat in snapshots]
    else:
        probe = Trainer(bundle, adapter(folder / PROBE, bundle), objective, config)
        probe.accumulate(batches[0])
        record.keep_gradients(PROBE, disk_gradients(probe))
        accuracies = [accuracy(trainer, flat, job) for flat in snapshots]
    versions = {
        "edgelora": edgelora.__version__,
        "onnxruntime": ENGINE_VERSION,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    record.write(destination, accuracies, versions, further)


def objective_of(job: Job, padded: bool) -> Objective:
    """What the job's samples ask for."""
    if isinstance(job.train, TokenRows):
        return language_modeling(job.train)
    if isinstance(job.train, Images) and job.train.boxes is not None:
        height, width = job.train.pixels.shape[2:]
        return Objects(job.train, (height, width))
    return (Padded if padded else Classification)(job.train, job.train.labels)


def language_modeling(data: TokenRows) -> LanguageModeling:
    """The rows, whose tokens to foretell stand at the place of the token before them."""
    after = np.pad(data.labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    rows = zip(data.tokens, after, strict=True)
    return LanguageModeling([row_of(tokens, np.maximum(labels, 0), labels >= 0, 0) for tokens, labels in rows])


def adapter(folder: Path, bundle: Bundle) -> Adapter:
    """The values that all start from, for this bundle's base: a quantized one has a digest of its own."""
    return replace(read_adapter(folder), base_digest=bundle.manifest.base_digest)


def disk_gradients(trainer: Trainer) -> dict[str, NDArray[np.float32]]:
    """The last batch's gradients in PEFT's orientation."""
    turned = (".lora_A", ".lora_B")
    return {n: g.T if n.endswith(turned) and g.ndim == 2 else g for n, g in trainer.gradients().items()}


def planned_accuracy(trainer: Trainer, flat: NDArray[np.float32], job: Job) -> float:
    """The same by the trainer's own evaluation, which the memory plan counted in."""
    trainer.flat[:] = flat
    return trainer.evaluate(Classification(job.test, job.test.labels))["accuracy"]


def accuracy(trainer: Trainer, flat: NDArray[np.float32], job: Job) -> float:
    """Accuracy on the test texts with these parameters."""
    trainer.flat[:] = flat
    feeds = trainer.current().feeds(trainer.bundle.manifest)
    (output,) = (spec.name for spec in trainer.bundle.manifest.outputs)
    hits = 0
    for rows in job.test.evaluation_batches():
        logits = trainer.bundle.forward.run({**job.test.feeds(rows), **feeds}, [output])[output]
        hits += int((logits.argmax(1) == job.test.labels[rows]).sum())
    return hits / len(job.test)


if __name__ == "__main__":
    main()
