"""A training run that survives: its state is on disk every few steps, and the same command continues it.

A run is known by its id, the digest of everything that decides its result. The finished adapter is a
function of the id alone: interrupted anywhere and continued, it is the same to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter
from edgelora.objectives import Objective
from edgelora.trainer import StepResult, Trainer
from edgelora.training_state import Progress, StateFile


@dataclass(frozen=True)
class RunResult:
    """A finished run: the adapter to keep (the best epoch's, if there was a validation set) and its record.

    `step_seconds` are the durations of the steps of this call, the first of which is `resumed_at` + 1.
    """

    adapter: Adapter
    progress: Progress
    resumed_at: int
    step_seconds: tuple[float, ...]


Callback = Callable[[StepResult, Progress], None]


def run_id(**decisive: Any) -> str:
    """The digest of what decides a run's result."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def fit(
    trainer: Trainer,
    validation: Objective | None = None,
    state: StateFile | None = None,
    callback: Callback = lambda _step, _progress: None,
) -> RunResult:
    """Train to the end, continuing from `state` if it is there.

    Raises:
        TrainingError: the loss diverged, or the state is damaged or another run's.
        StoreError: the state cannot be written.
    """
    progress, best = (Progress(), None) if state is None else state.restore(trainer)
    resumed_at, started, before = progress.step, time.monotonic(), progress.seconds
    durations: list[float] = []
    batches, loaded = [], -1
    while progress.step < trainer.total_steps and not progress.stopped_early:
        epoch, place = trainer.epoch_of_step(progress.step)
        if loaded != epoch:
            batches, loaded = trainer.batches(epoch), epoch
        begun = time.perf_counter()
        result = trainer.step(batches[place])
        durations.append(time.perf_counter() - begun)
        progress.step = result.step
        progress.epoch_losses.append(result.loss)
        if progress.step == 1:
            progress.first_loss = result.loss
        epoch_ends = place == len(batches) - 1 or progress.step == trainer.total_steps
        if epoch_ends:
            best = _end_epoch(trainer, validation, progress, epoch, best)
        progress.seconds = before + time.monotonic() - started
        if state is not None and (epoch_ends or progress.step % trainer.config.save_steps == 0):
            state.write(trainer, progress, best)
        callback(result, progress)
    final = trainer.current()
    if best is not None and trainer.config.load_best_model_at_end:
        final = with_flat(trainer, best)
    return RunResult(final, progress, resumed_at, tuple(durations))


def _end_epoch(
    trainer: Trainer,
    validation: Objective | None,
    progress: Progress,
    epoch: int,
    best: NDArray[np.float32] | None,
) -> NDArray[np.float32] | None:
    """Record the epoch, keep its adapter if it is the best so far, decide whether to go on."""
    entry: dict[str, float] = {"epoch": epoch + 1, "train_loss": float(np.mean(progress.epoch_losses))}
    progress.epoch_losses = []
    if validation is not None:
        metrics = trainer.evaluate(validation)
        entry |= {f"eval_{name}": value for name, value in metrics.items()}
        value = metrics[validation.metric]
        better = progress.best_metric is None or (
            value > progress.best_metric if validation.higher_is_better else value < progress.best_metric
        )
        if better:
            progress.best_metric, progress.best_epoch = value, epoch + 1
            best = trainer.flat.copy()
        patience = trainer.config.early_stopping_patience
        since = epoch + 1 - (progress.best_epoch or 0)
        progress.stopped_early = patience is not None and since >= patience
    progress.history.append(entry)
    return best


def with_flat(trainer: Trainer, flat: NDArray[np.float32]) -> Adapter:
    """The trainer's adapter with other values of its flat parameters."""
    kept = trainer.flat.copy()
    trainer.flat[:] = flat
    adapter = trainer.current()
    trainer.flat[:] = kept
    return adapter


def finish(result: RunResult, identity: str, parent: str | None, settings: dict[str, Any]) -> Adapter:
    """The adapter with its training record: what it was trained with and what came out. No times, no host."""
    progress = result.progress
    record = {
        "run_id": identity,
        "parent": parent,
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "stopped_early": progress.stopped_early,
        "history": progress.history,
        "settings": settings,
    }
    return replace(result.adapter, training=record)
