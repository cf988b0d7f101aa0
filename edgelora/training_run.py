"""A training run that survives: its state is on disk every few steps, and the same command continues it.

A run is known by its id, the digest of everything that decides its result. The finished adapter is a
function of the id alone: interrupted anywhere and continued, it is the same to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgelora.adapter import Adapter
from edgelora.errors import StoreError, TrainingError
from edgelora.files import write_atomic
from edgelora.objectives import Objective
from edgelora.trainer import StepResult, Trainer

STATE_FILE = "state.safetensors"
_BEST, _CURRENT, _OPTIMIZER = "best", "current", "optimizer."


@dataclass
class Progress:
    """Where a run is. `history` has an entry per finished epoch: epoch, train_loss, and validation metrics."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    epoch_losses: list[float] = field(default_factory=list[float])
    best_metric: float | None = None
    best_epoch: int | None = None
    stopped_early: bool = False
    seconds: float = 0.0


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
    state_folder: Path | None = None,
    identity: str = "",
    callback: Callback = lambda _step, _progress: None,
) -> RunResult:
    """Train to the end, continuing the state in `state_folder` if it is this run's.

    Raises:
        TrainingError: the loss diverged, or the state belongs to another run.
        StoreError: the state cannot be written.
    """
    progress = Progress()
    best: NDArray[np.float32] | None = None
    path = state_folder / STATE_FILE if state_folder is not None else None
    if path is not None and path.exists():
        progress, best = restore(path, trainer, identity)
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
        epoch_ends = place == len(batches) - 1 or progress.step == trainer.total_steps
        if epoch_ends:
            best = _end_epoch(trainer, validation, progress, epoch, best)
        progress.seconds = before + time.monotonic() - started
        if path is not None and (epoch_ends or progress.step % trainer.config.save_steps == 0):
            store(path, trainer, progress, best, identity)
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


def store(path: Path, trainer: Trainer, progress: Progress, best: NDArray[np.float32] | None, identity: str) -> None:
    """Write the state atomically: after a kill either this state or the one before is there."""
    arrays: dict[str, NDArray[Any]] = {_CURRENT: trainer.flat}
    arrays |= {f"{_OPTIMIZER}{name}": array for name, array in trainer.optimizer.state().items()}
    if best is not None:
        arrays[_BEST] = best
    metadata = {"run_id": identity, "progress": json.dumps(asdict(progress))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save(arrays, metadata))
    except OSError as error:
        raise StoreError(
            f"{path}: the training state cannot be written ({error.strerror or error}); free some space and run "
            "the same command: it continues from the state before"
        ) from error


def restore(path: Path, trainer: Trainer, identity: str) -> tuple[Progress, NDArray[np.float32] | None]:
    """Put the trainer where the state was written.

    Raises:
        TrainingError: the state is damaged or belongs to a run with other data or settings.
    """
    arrays, progress, owner = _read(path)
    if owner != identity:
        raise TrainingError(
            f"{path}: an unfinished training with other data or settings is at step {progress.step}; run its command "
            "again to finish it, or add --discard to drop it"
        )
    if arrays[_CURRENT].shape != trainer.flat.shape:
        raise TrainingError(f"{path}: the training state has another size; add --discard to drop it")
    trainer.flat[:] = arrays[_CURRENT]
    trainer.optimizer.load_state(
        {name.removeprefix(_OPTIMIZER): a.copy() for name, a in arrays.items() if name.startswith(_OPTIMIZER)}
    )
    trainer.step_number = progress.step
    best = arrays.get(_BEST)
    return progress, None if best is None else best.copy()


def unfinished(folder: Path) -> str | None:
    """The id of the run whose state lies in the folder; None if there is none or it is damaged."""
    try:
        return _read(folder / STATE_FILE)[2]
    except TrainingError:
        return None


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], Progress, str]:
    """The arrays, the progress and the run's id of a state. Raises TrainingError if it is damaged."""
    try:
        content = path.read_bytes()
        arrays = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        return arrays, Progress(**json.loads(header["progress"])), str(header["run_id"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: the training state is damaged ({error}); add --discard to drop it") from error


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
