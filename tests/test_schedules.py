"""The learning-rate factors are those of transformers' get_scheduler."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from edgelora.schedules import SCHEDULES, learning_rate_factor


def by_transformers(schedule: str, warmup: int, total: int) -> list[float]:
    """The factor at each of `total` steps and the one after."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    factors: list[float] = []
    for _ in range(total + 1):
        factors.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return factors


@given(st.sampled_from(SCHEDULES), st.integers(0, 30), st.integers(1, 25))
def test_the_factors_are_transformers(schedule: str, warmup: int, total: int):
    ours = [learning_rate_factor(schedule, step, warmup, total) for step in range(total + 1)]
    assert ours == pytest.approx(by_transformers(schedule, warmup, total), abs=1e-12)


def test_the_course_of_each():
    assert [learning_rate_factor("linear", s, 2, 6) for s in range(7)] == [0, 0.5, 1, 0.75, 0.5, 0.25, 0]
    assert [learning_rate_factor("constant", s, 2, 4) for s in range(5)] == [0, 0.5, 1, 1, 1]
    assert learning_rate_factor("cosine", 3, 0, 6) == pytest.approx(0.5)
    assert all(learning_rate_factor(name, 99, 0, 6) == (name == "constant") for name in ("linear", "constant"))
