"""Reading and writing at indices drawn at random, from either end, once and several times."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.drawing import axis_of, computed, few, ints, shapes, try_both

REDUCTIONS = st.sampled_from(["none", "add", "mul", "max", "min"])


def indices(shape: tuple[int, ...], size: int, seed: int) -> np.ndarray:
    """Random places among `size`, counted from either end."""
    return np.asarray(np.random.default_rng(seed).integers(-size, size, shape))


@few
@given(shape=shapes(1), places=shapes(0, 2), seed=st.integers(0, 99), data=st.data())
def test_gather(shape, places, seed, data):
    axis = data.draw(axis_of(shape))
    hidden = data.draw(computed(1))
    try_both(Case("Gather", [shape, indices(places, shape[axis], seed)], {"axis": axis}, computed=hidden))


@few
@given(shape=shapes(1, 3), seed=st.integers(0, 99), data=st.data())
def test_gather_elements(shape, seed, data):
    axis = data.draw(axis_of(shape))
    read = [data.draw(st.integers(1, d + (a == axis % len(shape)))) for a, d in enumerate(shape)]
    hidden = data.draw(computed(1))
    try_both(Case("GatherElements", [shape, indices(tuple(read), shape[axis], seed)], {"axis": axis}, computed=hidden))


@st.composite
def index_tuples(draw, shape: tuple[int, ...], batch: int = 0) -> np.ndarray:
    """Places of blocks in a tensor, `[..., q]`; the first axes are `batch` of its own."""
    q, rng = draw(st.integers(1, len(shape) - batch)), np.random.default_rng(draw(st.integers(0, 99)))
    outer = (*shape[:batch], *draw(shapes(0 if batch else 1, 2)))
    return np.stack([np.asarray(rng.integers(-d, d, outer)) for d in shape[batch : batch + q]], axis=-1)


@few
@given(shape=shapes(2, 4), data=st.data())
def test_gather_nd(shape, data):
    batch = data.draw(st.integers(0, len(shape) - 1))
    hidden = data.draw(computed(1))
    try_both(Case("GatherND", [shape, data.draw(index_tuples(shape, batch))], {"batch_dims": batch}, computed=hidden))


@few
@given(shape=shapes(1, 3), reduction=REDUCTIONS, seed=st.integers(0, 99), data=st.data())
def test_scatter_elements(shape, reduction, seed, data):
    axis = data.draw(axis_of(shape))
    written = tuple(data.draw(st.integers(1, d)) for d in shape)
    places = indices(written, shape[axis], seed)
    if reduction == "none":  # once to each place
        rng = np.random.default_rng(seed)
        order = rng.permuted(np.broadcast_to(np.arange(shape[axis]), (*np.delete(written, axis), shape[axis])), axis=-1)
        places = np.moveaxis(order, -1, axis).take(range(written[axis]), axis)
        places = places - shape[axis] * rng.integers(0, 2, written)
    how = {"axis": axis, "reduction": reduction}
    try_both(Case("ScatterElements", [shape, places, written], how, computed=data.draw(computed(1))))


@few
@given(shape=shapes(1, 3), reduction=REDUCTIONS, data=st.data())
def test_scatter_nd(shape, reduction, data):
    places = data.draw(index_tuples(shape))
    if reduction == "none":  # once to each place
        places = np.unique(places.reshape(-1, places.shape[-1]) % shape[: places.shape[-1]], axis=0)
    updates = (*places.shape[:-1], *shape[places.shape[-1] :])
    hidden = data.draw(computed(1))
    try_both(Case("ScatterND", [shape, places, updates], {"reduction": reduction}, computed=hidden))


@few
@given(shape=shapes(1), largest=st.integers(0, 1), data=st.data())
def test_top_k(shape, largest, data):
    axis = data.draw(axis_of(shape))
    k = ints([data.draw(st.integers(1, shape[axis]))])
    how, hidden = {"axis": axis, "largest": largest}, data.draw(computed(1))
    try_both(Case("TopK", [shape, k], how, outputs=2, cotangents=(0,), computed=hidden))


@few
@given(shape=shapes(1, 3), depth=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_one_hot(shape, depth, seed, data):
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    inputs = [indices(shape, depth + 1, seed), data.draw(st.sampled_from([np.array(depth), ints([depth])])), (2,)]
    try_both(Case("OneHot", inputs, {"axis": axis}, computed=data.draw(computed(0, 1))))
