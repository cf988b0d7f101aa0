"""A matrix that is turned, reshaped and turned back is reshaped once, where that is the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.turned_twice import turn_once


def model(sizes, second, rows=None, columns=None):
    """Y of X `[rows, columns]` by Transpose, Reshape to `sizes` and Transpose by the order `second`."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Constant", [], ["sizes"], value_ints=sizes),
        helper.make_node("Reshape", ["t", "sizes"], ["r"]),
        helper.make_node("Transpose", ["r"], ["y"], perm=second),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [rows, columns]), ("y", None)))
    made = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)])
    return ir.from_proto(made)


def turned(found):
    for node in list(found.graph):
        if node.op_type == "Constant":
            node.outputs[0].const_value = ir.tensor(np.asarray(node.attributes["value_ints"].value, np.int64))
    turn_once(found.graph, GraphBuilder(free_names(found.graph)).op)
    return ir.to_proto(found)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.sampled_from(["both", "first", "second"]))
def test_the_numbers_stay(rows, columns, axes, known):
    sizes = [-1 if known == "second" else columns, -1 if known == "first" else rows, *[1] * axes]
    plain = model(sizes, [1, 0, *range(2, 2 + axes)], rows, columns)
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    (parts,) = ReferenceEvaluator(ir.to_proto(plain)).run(None, {"x": x})
    wanted = np.asarray(parts)
    proto = turned(plain)
    assert "Transpose" not in [node.op_type for node in proto.graph.node if "y" in node.output]
    (made,) = ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_array_equal(np.asarray(made), wanted)
    assert wanted.shape == (rows, columns, *[1] * axes)


@pytest.mark.parametrize(
    ("sizes", "second"),
    [
        ([3, 2, 2, 1], [1, 0, 2, 3]),
        ([0, 4, 1, 1], [1, 0, 2, 3]),
        ([3, 4, 1, 1], [0, 1, 2, 3]),
        ([3, 4, 1, 1], [1, 0, 3, 2]),
    ],
)
def test_what_is_something_else_stays(sizes, second):
    proto = turned(model(sizes, second))
    assert [node.op_type for node in proto.graph.node].count("Transpose") == 2
