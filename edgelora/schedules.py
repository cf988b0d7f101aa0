"""Learning-rate schedules with warm-up, as transformers' `get_scheduler` has them."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate_factor(schedule: str, step: int, warmup_steps: int, total_steps: int) -> float:
    """The factor of the learning rate at `step` (from 0) of `total_steps`.

    After a linear warm-up: constant 1, linear to 0, or half a cosine to 0.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    if schedule == "constant":
        return 1.0
    after_warmup = max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, (total_steps - step) / after_warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / after_warmup)))
