"""What random gradient cases are drawn from: shapes, broadcasts, axes; and how a drawn case is tried."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.checker import check

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def try_both(case: Case) -> None:
    """Check the case with its sizes known and with ranks alone."""
    for symbolic in (False, True):
        check(case, symbolic, directions=2)


def shapes(low: int = 0, high: int = 4, smallest: int = 1) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of `low` to `high` axes, each of `smallest` to 4 elements."""
    return st.lists(st.integers(smallest, 4), min_size=low, max_size=high).map(tuple)


@st.composite
def broadcast(draw, count: int) -> list[tuple[int, ...]]:
    """The shapes of several operands that broadcast together."""
    full = draw(shapes())
    made = []
    for _ in range(count):
        lead = draw(st.integers(0, len(full)))
        made.append(tuple(d if draw(st.booleans()) else 1 for d in full[lead:]))
    return made


def axis_of(shape: tuple[int, ...]) -> st.SearchStrategy[int]:
    """An axis, counted from either end."""
    return st.integers(-len(shape), len(shape) - 1)


@st.composite
def some_axes(draw, rank: int, least: int = 0) -> list[int]:
    """Different axes in any order, each counted from either end."""
    chosen = draw(st.lists(st.integers(0, rank - 1), unique=True, min_size=min(least, rank), max_size=rank))
    return [axis - rank if draw(st.booleans()) else axis for axis in chosen]


def computed(*positions: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Which of these inputs a rule cannot read."""
    return st.lists(st.sampled_from(positions), unique=True, max_size=len(positions)).map(sorted).map(tuple)


def ints(values) -> np.ndarray:
    """An int64 tensor."""
    return np.array(values, dtype=np.int64)
