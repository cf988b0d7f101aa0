"""What a training tells of itself when it ends."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from edgelora.adapter import Adapter
from edgelora.gate import Verdict
from edgelora.memory_plan import MemoryPlan
from edgelora.trainer import trained_tensors
from edgelora.training_config import TrainingConfig
from edgelora.training_state import Progress


@dataclass(frozen=True)
class TrainingReport:
    """What `train` did. `already_done` when this very run had been finished before and nothing was trained.

    `version` is the adapter's in the store, `steps` the updates of the whole run, `resumed_at` the step at
    which this call went on (0: from the start), `seconds` the run's, earlier calls included, and
    `step_seconds_median` of this call's steps (None if there was none). `history` has a mapping per epoch:
    `epoch` from 1, `train_loss` and, with validation samples, `eval_loss` and the task's metrics as `eval_…`.
    `best_epoch` is the one with the best metric, None without validation samples. `memory` is how the run was laid
    out, if there was a budget. `gate` is what the gate found, if there was one: `version` is current unless it was not
    accepted. `notes` say what the settings made otherwise than one might expect.
    """

    adapter: str
    version: int
    steps: int
    resumed_at: int
    seconds: float
    step_seconds_median: float | None
    history: tuple[dict[str, float], ...]
    best_epoch: int | None
    stopped_early: bool
    already_done: bool
    trainable_parameters: int
    labels: tuple[str, ...] | None
    memory: MemoryPlan | None = None
    gate: Verdict | None = None
    notes: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether the version is current."""
        return self.gate is None or self.gate.accepted

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        nested = {name: getattr(self, name) for name in ("memory", "gate")}
        return (
            dataclasses.asdict(self)
            | {name: None if value is None else value.to_dict() for name, value in nested.items()}
            | {"active": self.active}
        )


def recorded(adapter: Adapter) -> Progress:
    """The progress of the run that made an adapter, as the adapter records it."""
    record = adapter.training
    return Progress(
        step=int(record.get("steps", 0)),
        history=list(record.get("history", [])),
        best_epoch=record.get("best_epoch"),
        stopped_early=bool(record.get("stopped_early", False)),
    )


def report_of(
    name: str, version: int, adapter: Adapter, progress: Progress, config: TrainingConfig, already_done: bool
) -> TrainingReport:
    """Of the run that made this version; a run that is already done was resumed at its end."""
    return TrainingReport(
        adapter=name,
        version=version,
        steps=progress.step,
        resumed_at=progress.step if already_done else 0,
        seconds=progress.seconds,
        step_seconds_median=None,
        history=tuple(progress.history),
        best_epoch=progress.best_epoch,
        stopped_early=progress.stopped_early,
        already_done=already_done,
        trainable_parameters=sum(adapter.tensors[name].size for name in trained_tensors(adapter, config)),
        labels=adapter.labels,
    )
