"""TFLite graphs that are hostile or odd: refused by name and in little memory, or read as they are meant."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tflite", reason="needs the TFLite schema: edgelora[tflite]")

from edgelora_tools.sources.tflite.model import Graph, Operator, Tensor
from edgelora_tools.sources.tflite.translate import translate


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
    graph = Graph((x, tensor("y", (1, 3), dtype=np.bool_)), (Operator("EQUAL", (0, 0), (1,)),), (0,), (1,))
    assert first_axis(graph) == "batch"


@pytest.mark.parametrize(("divisor", "axis"), [(0.0, 1), (1.0, "batch")])
def test_the_batch_is_open_only_if_something_finite_was_tried(divisor, axis):
    held = tensor("d", (), np.float32(divisor).reshape(()))
    steps = (Operator("MUL", (0, 1), (2,)), Operator("DIV", (2, 1), (3,)))
    graph = Graph((tensor("x", (1, 3)), held, tensor("m", (1, 3)), tensor("y", (1, 3))), steps, (0,), (3,))
    assert first_axis(graph) == axis
