"""The state of an unfinished run on disk: written at once, checked by a digest, and read only for its own run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgelora.errors import StoreError, TrainingError
from edgelora.files import write_atomic
from edgelora.sealing import DamagedSeal, Key, sealed, unsealed
from edgelora.trainer import Trainer

STATE_FILE = "state.safetensors"
_BEST, _CURRENT, _OPTIMIZER = "best", "current", "optimizer."
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)

Arrays = dict[str, NDArray[Any]]


@dataclass
class Progress:
    """Where a run is. `history` has an entry per finished epoch: epoch, train_loss, and validation metrics.

    `first_loss` is that of the first batch before any step.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    epoch_losses: list[float] = field(default_factory=list[float])
    best_metric: float | None = None
    best_epoch: int | None = None
    stopped_early: bool = False
    seconds: float = 0.0
    first_loss: float | None = None


class StateFile:
    """The state of one run, in a folder of its own; encrypted if there is a key."""

    def __init__(self, folder: Path, identity: str, key: Key | None = None) -> None:
        self.path, self.identity, self.key = folder / STATE_FILE, identity, key

    def write(self, trainer: Trainer, progress: Progress, best: NDArray[np.float32] | None) -> None:
        """Write the state atomically: after a kill either this state or the one before is there.

        Raises:
            StoreError: the disk refuses.
        """
        arrays: Arrays = {_CURRENT: trainer.flat}
        arrays |= {f"{_OPTIMIZER}{name}": array for name, array in trainer.optimizer.state().items()}
        if best is not None:
            arrays[_BEST] = best
        metadata = {"run_id": self.identity, "progress": json.dumps(asdict(progress))}
        metadata["sha256"] = state_digest(arrays, metadata)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, sealed(self.key, save(arrays, metadata), state_purpose(self.path)))
        except OSError as error:
            raise StoreError(
                f"{self.path}: the training state cannot be written ({error.strerror or error}); free some space and "
                "run the same command: it continues from the state before"
            ) from error

    def restore(self, trainer: Trainer) -> tuple[Progress, NDArray[np.float32] | None]:
        """Put the trainer where the state was written; a new run's progress if there is none.

        Raises:
            TrainingError: the state is damaged or belongs to a run with other data or settings.
            StoreError: it is encrypted with another key.
        """
        if not self.path.exists():
            return Progress(), None
        arrays, progress, owner = _read(self.path, self.key)
        if owner != self.identity:
            raise TrainingError(
                f"{self.path}: an unfinished training with other data or settings is at step {progress.step}; run its "
                "command again to finish it, or add --discard to drop it"
            )
        if not _fits(arrays, progress, trainer):
            raise TrainingError(f"{self.path}: the training state has another size; add --discard to drop it")
        trainer.flat[:] = arrays[_CURRENT]
        trainer.optimizer.load_state(
            {name.removeprefix(_OPTIMIZER): a.copy() for name, a in arrays.items() if name.startswith(_OPTIMIZER)}
        )
        trainer.step_number = progress.step
        best = arrays.get(_BEST)
        return progress, None if best is None else best.copy()


def unfinished(folder: Path, key: Key | None = None, trainer: Trainer | None = None) -> str | None:
    """The id of the run whose state lies in the folder; None if there is none that fits `trainer`.

    Raises:
        StoreError: it is encrypted with another key.
    """
    try:
        arrays, progress, identity = _read(folder / STATE_FILE, key)
        return identity if trainer is None or _fits(arrays, progress, trainer) else None
    except TrainingError:
        return None


def state_purpose(path: Path) -> str:
    """What a state file is for, as its seal says."""
    return f"the training state of {path.parent.parent.name!r}"


def _read(path: Path, key: Key | None) -> tuple[Arrays, Progress, str]:
    """The arrays, the progress and the run's id of a state. Raises TrainingError if it is damaged."""
    try:
        content = unsealed(key, path.read_bytes(), state_purpose(path))
        arrays = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        if header.get("sha256") != state_digest(arrays, header):
            raise ValueError("it does not have its digest")
        return arrays, _progress(json.loads(header["progress"])), str(header["run_id"])
    except (OSError, DamagedSeal, SafetensorError, *_MALFORMED) as error:
        raise TrainingError(f"{path}: the training state is damaged ({error}); add --discard to drop it") from error


def state_digest(arrays: Arrays, metadata: Mapping[str, str]) -> str:
    """SHA-256 of all that the state holds."""
    digest = hashlib.sha256(json.dumps([metadata["run_id"], metadata["progress"]]).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _fits(arrays: Arrays, progress: Progress, trainer: Trainer) -> bool:
    """Whether the arrays are of this trainer's parameters: as many, float32, and an optimizer's state that is whole."""
    adamw = trainer.config.optim == "adamw"
    parts = {name: {key for key in arrays if key.startswith(f"{_OPTIMIZER}{name}.")} for name in ("first", "second")}
    steps = arrays.get(f"{_OPTIMIZER}steps")
    if adamw and (steps is None or steps.dtype != np.int64 or steps.shape != (1,) or steps[0] < 0):
        return False
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys((_CURRENT, _BEST), trainer.flat.shape)
    for name, group in trainer.groups.items():
        shapes |= {f"{_OPTIMIZER}{part}.{name}": trainer.flat[group].shape for part in ("first", "second", "velocity")}
    same = {key.replace(".first.", ".second.") for key in parts["first"]} == parts["second"]
    values = {name: array for name, array in arrays.items() if name != f"{_OPTIMIZER}steps"}
    return (
        same
        and progress.step <= trainer.total_steps
        and _CURRENT in values
        and all(a.dtype == np.float32 and a.shape == shapes.get(name) for name, a in values.items())
        and all(bool(np.isfinite(values[name]).all()) for name in (_CURRENT, _BEST) if name in values)
    )


def _progress(body: Any) -> Progress:
    """Raises ValueError or TypeError if it is not one."""
    progress = Progress(**body)
    history = cast("list[object]", progress.history)
    numbers: list[object] = [*progress.epoch_losses, progress.seconds]
    for entry in history:
        numbers += cast("dict[str, object]", entry).values()
    numbers += [number for number in (progress.best_metric, progress.first_loss) if number is not None]
    counts: list[object] = [progress.step, *([] if progress.best_epoch is None else [progress.best_epoch])]
    if (
        not all(type(number) in (int, float) for number in numbers)
        or not all(type(count) is int and count >= 0 for count in counts)
        or type(progress.stopped_early) is not bool
        or (progress.best_epoch or 0) > len(history)
    ):
        raise ValueError("its progress is malformed")
    return progress
