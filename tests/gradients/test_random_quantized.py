"""Quantized operators of shapes, axes, blocks and types drawn at random, against themselves without rounding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.drawing import axis_of, few, shapes, try_both

TYPES = st.sampled_from([np.int8, np.uint8])
SMALL = st.integers(1, 4)


def limits(dtype: type) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


@st.composite
def grids(draw, rng: np.random.Generator) -> tuple[tuple[int, ...], np.ndarray, np.ndarray, dict, type]:
    """A shape, scales and zero points per tensor, axis or block of it, the attributes, the type of the codes."""
    shape, dtype = draw(shapes(1)), draw(TYPES)
    axis, kind = draw(axis_of(shape)), draw(st.sampled_from(["tensor", "axis", "block"]))
    sizes: tuple[int, ...] = ()
    how: dict = {}
    if kind == "axis":
        sizes, how = (shape[axis],), {"axis": axis}
    elif kind == "block":
        block = draw(st.integers(2, 3))
        sizes = tuple(-(-d // block) if i == axis % len(shape) else d for i, d in enumerate(shape))
        how = {"axis": axis, "block_size": block}
    low, high = limits(dtype)
    return shape, rng.uniform(0.005, 0.02, sizes), rng.integers(low, high + 1, sizes).astype(dtype), how, dtype


@few
@given(data=st.data(), seed=st.integers(0, 99))
def test_quantize(data, seed):
    shape, s, z, how, dtype = data.draw(grids(np.random.default_rng(seed)))
    try_both(Case("QuantizeLinear", [shape, s, z], how, made={0: dtype}))


@few
@given(data=st.data(), seed=st.integers(0, 99))
def test_dequantize(data, seed):
    shape, s, z, how, dtype = data.draw(grids(np.random.default_rng(seed)))
    try_both(Case("DequantizeLinear", [shape, s, z], how, codes={0: dtype}, within={0: limits(dtype)}))


@few
@given(lead=shapes(0, 2), m=SMALL, k=SMALL, n=SMALL, a=TYPES, b=TYPES, frozen=st.booleans(), zeros=st.integers(0, 2))
def test_integer_product(lead, m, k, n, a, b, frozen, zeros):
    rng = np.random.default_rng(m + 7 * k + 49 * n)
    right = rng.integers(*limits(b), (k, n)).astype(b) if frozen else (k, n)
    sides = {0: a} if frozen else {0: a, 1: b}
    points = [np.array(rng.integers(*limits(t)), t) for t in (a, b)][:zeros]
    within = {i: limits(t) for i, t in sides.items()}
    case = Case("MatMulInteger", [(*lead, m, k), right, *points], codes=sides, within=within, made={0: np.int32})
    try_both(case)
