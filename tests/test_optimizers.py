"""AdamW, SGD and clipping do what torch's do, step for step, and continue exactly from their state."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgelora.optimizers import SGD, AdamW, Optimizer, clip_by_global_norm

STEPS = 20
SHAPES = {"a": (7, 3), "b": (3, 5), "c": (4,)}
Make = tuple[Callable[[], Optimizer], Callable[[Any], torch.optim.Optimizer]]


def sgd(**settings: Any) -> Make:
    return lambda: SGD(**settings), lambda parameters: torch.optim.SGD(parameters, lr=1.0, **settings)


def adamw(**settings: Any) -> Make:
    return lambda: AdamW(**settings), lambda parameters: torch.optim.AdamW(parameters, lr=1.0, **settings)


CASES = {
    "sgd": sgd(momentum=0.0),
    "sgd momentum": sgd(momentum=0.9),
    "sgd nesterov": sgd(momentum=0.8, nesterov=True),
    "sgd decay": sgd(momentum=0.0, weight_decay=0.1),
    "sgd all": sgd(momentum=0.9, nesterov=True, weight_decay=0.05),
    "adamw": adamw(weight_decay=0.0),
    "adamw decay": adamw(weight_decay=0.1),
    "adamw settings": adamw(betas=(0.8, 0.95), eps=1e-5, weight_decay=0.01),
}
each_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


def start(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, np.ndarray]:
    """Of very different sizes, some exactly zero."""
    rng = np.random.default_rng(100 + step)
    made = {n: (rng.standard_normal(s) * 10.0 ** rng.integers(-4, 2)).astype(np.float32) for n, s in SHAPES.items()}
    made["c"][0] = 0.0
    return made


def rate(step: int) -> float:
    return 0.02 * (1 - step / STEPS)


@each_case
def test_the_updates_are_torchs(make: Make):
    ours, theirs = start(), {n: torch.nn.Parameter(torch.from_numpy(t.copy())) for n, t in start().items()}
    optimizer, reference = make[0](), make[1](list(theirs.values()))
    for step in range(STEPS):
        optimizer.step(ours, gradients(step), rate(step))
        for group in reference.param_groups:
            group["lr"] = rate(step)
        for name, gradient in gradients(step).items():
            theirs[name].grad = torch.from_numpy(gradient)
        reference.step()
        for name, tensor in theirs.items():
            np.testing.assert_allclose(ours[name], tensor.detach().numpy(), rtol=1e-6, atol=1e-6)
    assert any(np.abs(ours[n] - t).max() > 0.01 for n, t in start().items())


@each_case
@pytest.mark.parametrize("when", [0, 1, 7])
def test_a_saved_state_continues_to_the_last_bit(make: Make, when: int):
    whole, parts = start(), start()
    first, second = make[0](), make[0]()
    uninterrupted = make[0]()
    for step in range(STEPS):
        uninterrupted.step(whole, gradients(step), rate(step))
        if step == when:
            saved = {name: array.copy() for name, array in first.state().items()}
            second.load_state(saved)
            for array in saved.values():
                array[...] = 0
        (first if step < when else second).step(parts, gradients(step), rate(step))
    for name in SHAPES:
        np.testing.assert_array_equal(parts[name], whole[name])


@each_case
def test_gradients_are_left_alone_and_parameters_stay_where_they_are(make: Make):
    optimizer, parameters, given = make[0](), start(), gradients(0)
    places = {name: array.ctypes.data for name, array in parameters.items()}
    for _ in range(3):
        optimizer.step(parameters, given, 0.1)
    for name in SHAPES:
        np.testing.assert_array_equal(given[name], gradients(0)[name])
        assert parameters[name].ctypes.data == places[name]
        assert parameters[name].dtype == np.float32


@pytest.mark.parametrize("make", [CASES["sgd decay"], CASES["sgd momentum"], CASES["adamw decay"]])
def test_a_step_allocates_no_temporaries(make: Make):
    size = 1 << 20
    parameters, given = {"flat": np.ones(size, np.float32)}, {"flat": np.ones(size, np.float32)}
    optimizer = make[0]()
    for _ in range(2):
        optimizer.step(parameters, given, 0.1)
    tracemalloc.start()
    optimizer.step(parameters, given, 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20),
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20),
    st.floats(1e-3, 1e4),
)
def test_clipping_is_torchs(first: list[float], second: list[float], max_norm: float):
    ours = {"a": np.asarray(first, np.float32), "b": np.asarray([second], np.float32)}
    theirs = [torch.nn.Parameter(torch.zeros(a.shape)) for a in ours.values()]
    for parameter, array in zip(theirs, ours.values(), strict=True):
        parameter.grad = torch.from_numpy(array.copy())
    expected = float(torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    norm = clip_by_global_norm(ours, max_norm)
    assert norm == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for array, parameter in zip(ours.values(), theirs, strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(array, parameter.grad.numpy(), rtol=2e-5, atol=1e-6)


def test_clipping_with_no_bound_changes_nothing():
    given = gradients(0)
    norm = clip_by_global_norm(given, float("inf"))
    assert norm == pytest.approx(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in given.values())), rel=1e-6)
    for name, gradient in gradients(0).items():
        np.testing.assert_array_equal(given[name], gradient)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_norm_tells_of_gradients_that_are_not_finite(bad: float):
    given = gradients(0)
    given["a"][0, 0] = bad
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(clip_by_global_norm(given, 1.0))


def test_the_state_has_an_array_per_parameter():
    assert {key.split(".")[0] for key in AdamW().state()} == {"steps"}
    optimizer = AdamW()
    optimizer.step(start(), gradients(0), 0.1)
    expected = {f"{part}.{name}" for part, name in itertools.product(("first", "second"), SHAPES)} | {"steps"}
    assert set(optimizer.state()) == expected
