"""Operators that move elements, with places, sizes and axes drawn at random, constant and computed."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.drawing import axis_of, computed, few, ints, shapes, some_axes, try_both


@few
@given(shape=shapes(0, 4, smallest=0), data=st.data())
def test_reshape(shape, data):
    count = int(np.prod(shape))
    split = data.draw(st.sampled_from([d for d in range(1, 5) if count % d == 0]))
    to = data.draw(st.permutations([split, count // split, 1]))
    try_both(Case("Reshape", [shape, ints(to)], {"allowzero": 1}, computed=data.draw(computed(1))))


@few
@given(op=st.sampled_from(["Transpose", "Flatten", "Unsqueeze", "Squeeze"]), shape=shapes(1), data=st.data())
def test_other_shapes(op, shape, data):
    if op == "Transpose":
        case = Case(op, [shape], {"perm": data.draw(st.permutations(range(len(shape))))})
    elif op == "Flatten":
        case = Case(op, [shape], {"axis": data.draw(st.integers(-len(shape), len(shape)))})
    elif op == "Unsqueeze":
        count = data.draw(st.integers(0, 2))
        axes = data.draw(some_axes(len(shape) + count, least=count))[:count]
        case = Case(op, [shape, ints(axes)], computed=data.draw(computed(1)))
    else:
        axes = data.draw(some_axes(len(shape)))
        shape = tuple(1 if axis in axes or axis - len(shape) in axes else d for axis, d in enumerate(shape))
        case = Case(op, [shape, ints(axes)], computed=data.draw(computed(1)))
    try_both(case)


@few
@given(shape=shapes(1), data=st.data())
def test_concat(shape, data):
    axis, sizes = data.draw(axis_of(shape)), data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    parts = [tuple(n if a == axis % len(shape) else d for a, d in enumerate(shape)) for n in sizes]
    try_both(Case("Concat", parts, {"axis": axis}))


@few
@given(shape=shapes(1), data=st.data())
def test_split(shape, data):
    axis, sizes = data.draw(axis_of(shape)), data.draw(st.lists(st.integers(0, 3), min_size=2, max_size=4))
    shape = tuple(sum(sizes) if a == axis % len(shape) else d for a, d in enumerate(shape))
    some = data.draw(st.lists(st.integers(0, len(sizes) - 1), unique=True, min_size=1).map(sorted).map(tuple))
    hidden = data.draw(computed(1))
    try_both(Case("Split", [shape, ints(sizes)], {"axis": axis}, outputs=len(sizes), cotangents=some, computed=hidden))


@few
@given(shape=shapes(1), data=st.data())
def test_slice(shape, data):
    axes = data.draw(some_axes(len(shape), least=1))
    steps = [data.draw(st.sampled_from([1, 1, 1, 2, -1, -2])) for _ in axes]
    starts, ends = ([data.draw(st.integers(-6, 6)) for _ in axes] for _ in range(2))
    which = data.draw(st.sampled_from(["all", "no steps", "no axes"]))
    if which == "no axes":
        case = Case("Slice", [shape, ints(starts), ints(ends)], computed=data.draw(computed(1, 2)))
    else:
        more = [ints(axes), ints(steps)][: 2 if which == "all" else 1]
        hidden = data.draw(computed(*range(1, 3 + len(more))))
        case = Case("Slice", [shape, ints(starts), ints(ends), *more], computed=hidden)
    try_both(case)


@few
@given(shape=shapes(1, 3), mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]), data=st.data())
def test_pad(shape, mode, data):
    axes = data.draw(some_axes(len(shape), least=1))
    sides = []
    for axis in axes:
        before = data.draw(st.integers(-2, 3))
        after = data.draw(st.integers(-2, 3))
        left = shape[axis] + min(before, 0) + min(after, 0)
        assume(left > 0 and (mode != "reflect" or max(before, after) < left))
        assume(mode != "wrap" or max(before, after) <= left)
        sides.append((before, after))
    pads = ints(np.transpose(sides).reshape(-1))
    value = data.draw(st.sampled_from([None, ()])) if mode == "constant" else None
    try_both(Case("Pad", [shape, pads, value, ints(axes)], {"mode": mode}, computed=data.draw(computed(1, 3))))


@few
@given(shape=shapes(1, 3), data=st.data())
def test_center_crop_pad(shape, data):
    axes = data.draw(some_axes(len(shape), least=1))
    sizes = ints([data.draw(st.integers(1, 6)) for _ in axes])
    try_both(Case("CenterCropPad", [shape, sizes], {"axes": axes}, computed=data.draw(computed(1))))


@few
@given(shape=shapes(0, 3), data=st.data())
def test_expand_and_tile(shape, data):
    repeats = [data.draw(st.integers(1, 3)) for _ in shape]
    if data.draw(st.booleans()):
        case = Case("Tile", [shape, ints(repeats)], computed=data.draw(computed(1)))
    else:
        small = tuple(1 if r > 1 else d for d, r in zip(shape, repeats, strict=True))
        lead = data.draw(st.lists(st.integers(1, 3), max_size=2))
        full = [*lead, *(max(d, r) for d, r in zip(small, repeats, strict=True))]
        case = Case("Expand", [small, ints(full)], computed=data.draw(computed(1)))
    try_both(case)


@few
@given(shape=shapes(2, 4), k=st.integers(-4, 4), upper=st.integers(0, 1), data=st.data())
def test_trilu(shape, k, upper, data):
    try_both(Case("Trilu", [shape, np.array(k)], {"upper": upper}, computed=data.draw(computed(1))))


@few
@given(shape=shapes(2, 4), time=st.integers(0, 1), data=st.data())
def test_reverse_sequence(shape, time, data):
    lengths = ints([data.draw(st.integers(1, shape[time])) for _ in range(shape[1 - time])])
    how = {"time_axis": time, "batch_axis": 1 - time}
    try_both(Case("ReverseSequence", [shape, lengths], how, computed=data.draw(computed(1))))


@few
@given(shape=shapes(1), whole=st.booleans(), data=st.data())
def test_compress(shape, whole, data):
    axis = None if whole else data.draw(axis_of(shape))
    size = int(np.prod(shape)) if axis is None else shape[axis]
    condition = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=size)))
    how = {} if axis is None else {"axis": axis}
    try_both(Case("Compress", [shape, condition], how, computed=data.draw(computed(1))))
