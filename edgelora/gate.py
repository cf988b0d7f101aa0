"""The gate: a new version becomes current only if held-out samples show that it is not worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgelora.adapter import Adapter
from edgelora.errors import ConfigError
from edgelora.objectives import Objective
from edgelora.runtime import Model
from edgelora.samples import Sample
from edgelora.trainer import evaluate


@dataclass(frozen=True)
class Gate:
    """Held-out samples, and by how much of the task's metric (accuracy, recall@1, mse) a new version may be worse.

    A margin below 0 asks that it is better by so much.

    Raises:
        ConfigError: no samples, or a margin that is no finite number.
    """

    samples: Sequence[Sample]
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not self.samples:
            raise ConfigError("the gate has no held-out samples to judge by")
        if not math.isfinite(self.margin):
            raise ConfigError(f"the gate's margin must be a finite number, not {self.margin}")


@dataclass(frozen=True)
class Verdict:
    """What the gate found: the metric of the new version, of the one before (None: there was none), and of the base.

    A base without a head of its own is judged with a fresh one.
    """

    metric: str
    higher_is_better: bool
    margin: float
    samples: int
    new: float
    previous: float | None
    base: float

    @property
    def accepted(self) -> bool:
        """Whether the new version is not worse than either by more than the margin."""
        return not self._worse_than()

    @property
    def reason(self) -> str:
        """Why, in a line, with the figures."""
        sign = "≥" if self.higher_is_better else "≤"
        before = "" if self.previous is None else f", the version before {self.previous:.4f}"
        figures = f"{self.metric} on {self.samples} held-out samples: new {self.new:.4f}{before}, base {self.base:.4f}"
        if not (worse := self._worse_than()):
            return f"{figures}; accepted"
        allowed = " and ".join(f"{sign} {bound:.4f} ({name})" for name, bound in worse)
        return f"{figures}; not accepted: {allowed} was asked for, with a margin of {self.margin:g}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self) | {"accepted": self.accepted, "reason": self.reason}

    def _worse_than(self) -> list[tuple[str, float]]:
        """Which of the others the new version falls short of, and the bound that it had to reach."""
        others = [("the version before", self.previous), ("the base", self.base)]
        direction = -1.0 if self.higher_is_better else 1.0
        bounds = [(name, value + direction * self.margin) for name, value in others if value is not None]
        return [(name, bound) for name, bound in bounds if not direction * (self.new - bound) <= 0]


def judge(
    model: Model,
    gate: Gate,
    objective: Objective,
    batch_size: int,
    new: Adapter,
    previous: Adapter | None,
    base: Adapter,
) -> Verdict:
    """Evaluate all on the gate's samples, of which `objective` was made. `base` is a fresh adapter."""

    def measured(adapter: Adapter) -> float:
        return evaluate(model.bundle, adapter, objective, batch_size)[objective.metric]

    return Verdict(
        metric=objective.metric,
        higher_is_better=objective.higher_is_better,
        margin=gate.margin,
        samples=len(gate.samples),
        new=measured(new),
        previous=None if previous is None else measured(_comparable(model, previous, base)),
        base=measured(base),
    )


def _comparable(model: Model, adapter: Adapter, fresh: Adapter) -> Adapter:
    """The adapter with a head of the fresh one's classes, in their order; the fresh rows stand for those it lacks."""
    head = model.bundle.manifest.head
    if head is None:
        return adapter
    tensors = dict(adapter.tensors)
    for name in (head.weight, head.bias):
        rows = fresh.tensors[name].copy()
        if name in tensors and fresh.labels is not None and adapter.labels is not None:
            known = {label: row for row, label in enumerate(adapter.labels)}
            for row, label in enumerate(fresh.labels):
                if label in known:
                    rows[row] = tensors[name][known[label]]
        elif name in tensors and tensors[name].shape == rows.shape:
            rows = tensors[name]
        tensors[name] = rows
    return replace(adapter, tensors=tensors, labels=fresh.labels)
