"""Shape helpers on random shapes: all sizes known, none, and some named alike."""

import math
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.gradients.shapes import dims, expand_like, reshape_like, shape_of, size_of, unbroadcast

SETTINGS = settings(deadline=None, max_examples=150)
shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)
KNOWLEDGE = ("static", "named", "some", "unknown")


def declare(name, shape, knowledge, data):
    """What a value of `shape` declares: its sizes, names (equal sizes have equal names), some of each, or nothing."""
    if knowledge == "static":
        return list(shape)
    if knowledge == "named":
        return [f"size{d}" for d in shape]
    if knowledge == "some":
        return [data.draw(st.sampled_from([d, None, f"{name}{axis}"])) for axis, d in enumerate(shape)]
    return [None] * len(shape)


class Graph:
    """A graph under construction, and the numbers to run it with."""

    def __init__(self):
        self.builder = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="shapes"))
        self.op = self.builder.op
        self.feeds = {}

    def value(self, name, array, declared, inner=True):
        """An input, or with `inner` a value computed from one whose own shape says nothing."""
        self.feeds[name] = array
        if not inner:
            return self.builder.input(name, ir.DataType.DOUBLE, declared)
        value = self.op.Identity(self.builder.input(name, ir.DataType.DOUBLE, [None] * array.ndim))
        value.shape = ir.Shape(declared)
        return value

    def run(self, result):
        self.builder.add_output(self.op.Identity(result), "result")
        model = ReferenceEvaluator(ir.to_proto(ir.Model(self.builder.graph, ir_version=10)))
        return np.asarray(next(iter(model.run(None, self.feeds))))


def broadcasts(data, shape):
    """A shape that `shape` broadcasts to."""
    lead = data.draw(st.lists(st.integers(1, 3), max_size=2))
    return (*lead, *(data.draw(st.integers(1, 4)) if d == 1 else d for d in shape))


@SETTINGS
@given(st.data(), shapes, st.sampled_from(KNOWLEDGE), st.sampled_from(KNOWLEDGE), st.booleans())
def test_unbroadcast_is_the_adjoint_of_broadcasting(data, shape, know_x, know_dy, inner):
    wide = broadcasts(data, shape)
    graph, rng = Graph(), np.random.default_rng(0)
    x = graph.value("x", rng.standard_normal(shape), declare("x", shape, know_x, data), inner)
    dy = graph.value("dy", rng.standard_normal(wide), declare("dy", wide, know_dy, data), inner)
    dx = graph.run(unbroadcast(graph.op, dy, x))
    lead = len(wide) - len(shape)
    axes = tuple(i for i, d in enumerate(wide) if i < lead or (shape[i - lead] == 1 and d != 1))
    expected = graph.feeds["dy"].sum(axis=axes, keepdims=True).reshape(shape)
    np.testing.assert_allclose(dx, expected, atol=1e-12)


def grouped(data, factors):
    """A shape whose sizes are products of neighbouring factors."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(factors) - 1)))))
    bounds = [0, *cuts, len(factors)]
    return tuple(math.prod(factors[i:j]) for i, j in pairwise(bounds)) if factors else ()


@SETTINGS
@given(st.data(), shapes, st.sampled_from(KNOWLEDGE), st.sampled_from(KNOWLEDGE), st.booleans())
def test_reshape_like(data, factors, know_x, know_y, inner):
    shape, other = grouped(data, factors), grouped(data, factors)
    graph = Graph()
    x = graph.value("x", np.zeros(shape), declare("x", shape, know_x, data), inner)
    y = graph.value("y", np.arange(math.prod(other), dtype=float).reshape(other), declare("y", other, know_y, data))
    result = reshape_like(graph.op, y, x)
    assert len(dims(result)) == len(shape)
    np.testing.assert_array_equal(graph.run(result), graph.feeds["y"].reshape(shape))


@SETTINGS
@given(st.data(), shapes, st.sampled_from(KNOWLEDGE), st.sampled_from(KNOWLEDGE), st.booleans())
def test_expand_like(data, shape, know_x, know_y, inner):
    wide = broadcasts(data, shape)
    graph = Graph()
    x = graph.value("x", np.zeros(wide), declare("x", wide, know_x, data), inner)
    y = graph.value("y", np.random.default_rng(0).standard_normal(shape), declare("y", shape, know_y, data))
    result = graph.run(expand_like(graph.op, y, x))
    np.testing.assert_array_equal(result, np.broadcast_to(graph.feeds["y"], wide))


@SETTINGS
@given(st.data(), shapes, st.sampled_from(KNOWLEDGE), st.booleans())
def test_shape_of_and_size_of(data, shape, know, inner):
    graph = Graph()
    x = graph.value("x", np.zeros(shape), declare("x", shape, know, data), inner)
    sizes = [graph.op.Constant(value_ints=[0]), *(size_of(graph.op, x, axis) for axis in range(len(shape)))]
    result = graph.run(graph.op.Concat(shape_of(graph.op, x), *sizes, axis=0))
    assert result.tolist() == [*shape, 0, *shape]


def test_a_named_size_is_read_off_the_input_that_has_it():
    graph = Graph()
    graph.value("tokens", np.zeros((2, 3)), ["batch", "seq"], inner=False)
    activation = graph.op.Constant(value=ir.tensor(np.zeros((2, 3, 4))))
    activation.shape = ir.Shape(["batch", "seq", 4])
    shape_of(graph.op, activation)
    assert not activation.uses()
