"""Whether a training that ended left its own first batch worse than it found it: a loss may explode and stay finite.

What training saw tells at no cost that this may be so; then that batch is computed at both ends, which tells it.
"""

from __future__ import annotations

import math

import numpy as np

from edgelora.adapter import Adapter
from edgelora.flat import flatten
from edgelora.objectives import Floats
from edgelora.trainer import Trainer
from edgelora.training_run import RunResult

_FAR = 1.0  # of one parameter: where trainings converge most move by less than a tenth


def worsened(trainer: Trainer, start: Adapter, result: RunResult) -> str | None:
    """What to tell a person where the adapter that is kept is worse on the first batch than `start`; else None."""
    before, after = (flatten([one.tensors[name] for name in trainer.names])[0] for one in (start, result.adapter))
    progress, history = result.progress, result.progress.history
    best = progress.best_epoch if trainer.config.load_best_model_at_end else None
    learned = history[(best or len(history)) - 1]["train_loss"] if history else 0.0
    rose = progress.first_loss is not None and learned > progress.first_loss
    if not rose and float(np.abs(after - before).max(initial=0.0)) <= _FAR:
        return None
    began, ended = (_first_loss(trainer, flat) for flat in (before, after))
    if math.isfinite(ended) and ended <= began:
        return None
    return (
        f"warning: this adapter is worse than what it began from: the loss of the first batch was {began:.4g} and is "
        f"{ended:.4g}; lower the learning rate (it is {trainer.config.learning_rate:g}), or hold samples out: a gate "
        "keeps such a version from use"
    )


def _first_loss(trainer: Trainer, flat: Floats) -> float:
    """The mean loss of the run's first batch with these parameters; the trainer is left as it was."""
    kept, step = trainer.flat.copy(), trainer.step_number
    try:
        trainer.flat[:], trainer.step_number = flat, 0
        return trainer.accumulate(trainer.batches(0)[0])
    finally:
        trainer.flat[:], trainer.step_number = kept, step
