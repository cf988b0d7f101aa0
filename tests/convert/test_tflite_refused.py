"""TFLite graphs that are hostile or odd: refused by name and in little memory, or read as they are meant."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from edgelora.errors import ConversionError

pytest.importorskip("tflite", reason="needs the TFLite schema: edgelora[tflite]")

from edgelora_tools.sources.tflite.model import Graph, Operator, Quantization, Sparsity, Tensor, read_model
from edgelora_tools.sources.tflite.sparsity import dense
from edgelora_tools.sources.tflite.translate import translate
from tests.convert.memory import memory_below
from tests.convert.tflite_files import shared

SIZE = 1 << 20


def tensor(name, shape, data=None, dtype: type = np.float32, quantization=None, sparsity=None) -> Tensor:
    return Tensor(name, shape, False, np.dtype(dtype), data, quantization, sparsity)


def first_axis(graph: Graph) -> object:
    """What the first axis of the translated output is: a name where the batch is open."""
    shape = translate(graph).graph.outputs[0].shape
    assert shape is not None
    first = shape[0]
    return first if isinstance(first, int) else first.value


def test_the_batch_is_open_where_an_output_is_boolean():
    x = tensor("x", (1, 3))
    graph = Graph((x, tensor("y", (1, 3), dtype=np.bool_)), (Operator("EQUAL", (0, 0), (1,)),), (0,), (1,), SIZE)
    assert first_axis(graph) == "batch"


@pytest.mark.parametrize(("divisor", "axis"), [(0.0, 1), (1.0, "batch")])
def test_the_batch_is_open_only_if_something_finite_was_tried(divisor, axis):
    held = tensor("d", (), np.float32(divisor).reshape(()))
    steps = (Operator("MUL", (0, 1), (2,)), Operator("DIV", (2, 1), (3,)))
    graph = Graph((tensor("x", (1, 3)), held, tensor("m", (1, 3)), tensor("y", (1, 3))), steps, (0,), (3,), SIZE)
    assert first_axis(graph) == axis


def test_an_absent_input_is_refused():
    """The last tensor, at the index of an absent one, would fit."""
    tensors = (tensor("x", (1, 3)), tensor("y", (1, 3)), tensor("w", (1, 3), np.ones((1, 3), np.float32)))
    graph = Graph(tensors, (Operator("ADD", (0, -1), (1,)),), (0,), (1,), SIZE)
    with pytest.raises(ConversionError, match="absent"):
        translate(graph)


def test_an_operator_with_the_options_of_another_is_refused():
    """A changed byte names the table of another operator's options."""
    tensors = (tensor("x", (1, 3)), tensor("y", (1, 3)))
    graph = Graph(tensors, (Operator("CONCATENATION", (0,), (1,), {"StrideW": 1}),), (0,), (1,), SIZE)
    with pytest.raises(ConversionError, match=r"0, CONCATENATION, has no 'Axis' among its options.*copy or convert"):
        translate(graph)


@pytest.mark.parametrize("axis", [0, 1])
def test_scales_along_an_axis_that_is_not_the_outputs_are_refused(axis):
    told = Quantization(np.array([0.5, 2.0], np.float32), np.zeros(2, np.int64), axis)
    weight = tensor("w", (2, 2), np.array([[1, 2], [3, 4]], np.int8), np.int8, told)
    tensors = (tensor("x", (1, 2)), weight, tensor("y", (1, 2)))
    graph = Graph(tensors, (Operator("FULLY_CONNECTED", (0, 1), (2,)),), (0,), (2,), SIZE)
    if axis == 0:
        assert first_axis(graph) == "batch"
        return
    with pytest.raises(ConversionError, match="along the axis 1"):
        translate(graph)


@pytest.mark.parametrize(
    ("tables", "entries", "name", "held"),
    [(1, 1000, "x", 1 << 20), (1000, 1, "x", 1 << 20), (1000, 1, "x" * (1 << 20), 1)],
    ids=["one table", "one buffer", "one name"],
)
def test_what_a_file_tells_many_times_is_held_once(tables, entries, name, held):
    content = shared(tables, entries, name, held)
    with memory_below(4 * len(content)), suppress(ConversionError):
        read_model(content, "x")


def nearly_empty(n: int) -> Tensor:
    """A sparse matrix, `[n, n]`, of one value."""
    one = (0, np.array([0, 1]), np.array([0]))
    return tensor("s", (n, n), np.ones(1, np.float32), sparsity=Sparsity((0, 1), (), (one, one)))


def test_constants_grow_with_the_file_alone():
    """Twelve weights of 64 MB, each from one number."""
    n, many = 4096, 12
    made = [tensor(f"w{i}", (n, n)) for i in range(many)]
    graph = Graph(
        (tensor("x", (1, 3)), tensor("y", (1, 3)), nearly_empty(n), *made),
        (*(Operator("DENSIFY", (2,), (3 + i,)) for i in range(many)), Operator("ADD", (0, 0), (1,))),
        (0,),
        (1,),
        SIZE,
    )
    with memory_below(256 << 20), pytest.raises(ConversionError, match="times as large as the file"):
        translate(graph)
    assert first_axis(replace(graph, operators=graph.operators[-2:])) == "batch"


def test_a_weight_read_by_many_is_counted_for_each():
    """Each product has a transposed copy of one matrix."""
    n, many = 1024, 100
    rows = [tensor(f"y{i}/MatMul", (1, 1, n)) for i in range(many + 1)]
    steps = tuple(Operator("FULLY_CONNECTED", (i, many + 1), (i + 1,), {"KeepNumDims": True}) for i in range(many))
    graph = Graph((*rows, tensor("w", (n, n), np.zeros((n, n), np.float32))), steps, (0,), (many,), SIZE)
    with memory_below(256 << 20), pytest.raises(ConversionError, match="times as large as the file"):
        translate(graph)


@pytest.mark.parametrize(
    ("blocks", "axes"),
    [((2,), (4, 4, 1 << 24)), ((-1,), (4, 4, 1 << 24)), ((), ((0, np.array([0, 0]), np.array([], np.int64)), 1 << 24))],
    ids=["past the end", "negative", "no parents"],
)
def test_sparse_places_that_do_not_fit_are_refused_in_little_memory(blocks, axes):
    shape = (4, 4) if blocks else (4, 1 << 24)
    odd = tensor("s", shape, np.ones(16, np.float32), sparsity=Sparsity(tuple(range(len(axes))), blocks, axes))
    with memory_below(1 << 20), pytest.raises(ConversionError, match="sparse values do not fit"):
        dense(odd)
