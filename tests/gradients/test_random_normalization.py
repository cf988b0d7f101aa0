"""Normalizations of shapes, axes and scales drawn at random."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.drawing import axis_of, few, shapes, some_axes, try_both

EPSILON = st.sampled_from([0.01, 0.3])


@st.composite
def scaled(draw, count: int) -> tuple[tuple[int, ...], int, list[tuple[int, ...]]]:
    """The shape of X, an axis, and the shapes of scales that broadcast to what is from the axis on."""
    shape = draw(shapes(1))
    axis = draw(axis_of(shape))
    normal = shape[axis:]
    assume(np.prod(normal) > 1)
    return shape, axis, [tuple(d if draw(st.booleans()) else 1 for d in normal) for _ in range(count)]


@few
@given(drawn=scaled(2), epsilon=EPSILON, bias=st.booleans(), some=st.sampled_from([(0,), (0, 1), (0, 2), (0, 1, 2)]))
def test_layer_normalization(drawn, epsilon, bias, some):
    shape, axis, (gamma, beta) = drawn
    inputs = [shape, gamma, *([beta] if bias else [])]
    how = {"axis": axis, "epsilon": epsilon}
    try_both(Case("LayerNormalization", inputs, how, outputs=max(some) + 1, cotangents=some))


@few
@given(drawn=scaled(1), epsilon=EPSILON)
def test_rms_normalization(drawn, epsilon):
    shape, axis, (gamma,) = drawn
    try_both(Case("RMSNormalization", [shape, gamma], {"axis": axis, "epsilon": epsilon}))


@few
@given(shape=shapes(1), p=st.integers(1, 2), data=st.data())
def test_lp_normalization(shape, p, data):
    try_both(Case("LpNormalization", [shape], {"axis": data.draw(axis_of(shape)), "p": p}))


@few
@given(shape=shapes(1, 4, smallest=2), data=st.data())
def test_mean_variance_normalization(shape, data):
    axes = data.draw(some_axes(len(shape), least=1))
    assume(np.prod([shape[axis] for axis in axes]) > 2)
    try_both(Case("MeanVarianceNormalization", [shape], {"axes": axes}))


@few
@given(shape=shapes(2, 4, smallest=2), epsilon=EPSILON, training=st.booleans())
def test_batch_normalization(shape, epsilon, training):
    c, how = shape[1], {"epsilon": epsilon}
    if training:
        how |= {"training_mode": 1}
        inputs = [shape, (c,), (c,), np.zeros(c), np.ones(c)]
        try_both(Case("BatchNormalization", inputs, how, outputs=3, cotangents=(0,)))
    else:
        try_both(Case("BatchNormalization", [shape, *[(c,)] * 4], how, positive={4: 0.3}))


@few
@given(shape=shapes(3, 4, smallest=2), epsilon=EPSILON, groups=st.integers(0, 3))
def test_instance_and_group_normalization(shape, epsilon, groups):
    c, how = shape[1] * max(groups, 1), {"epsilon": epsilon}
    inputs = [(shape[0], c, *shape[2:]), (c,), (c,)]
    if groups:
        try_both(Case("GroupNormalization", inputs, {**how, "num_groups": groups, "stash_type": 11}))
    else:
        try_both(Case("InstanceNormalization", inputs, how))


@few
@given(shape=shapes(3, 4), size=st.integers(1, 5), beta=st.sampled_from([0.5, 1.3]))
def test_local_response_normalization(shape, size, beta):
    try_both(Case("LRN", [shape], {"size": size, "alpha": 0.8, "beta": beta, "bias": 1.1}))
