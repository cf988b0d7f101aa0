"""Pads and resizes with `axes` mean the same without them, and run on ONNX Runtime between transpositions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.passes.spell_out_axes import spell_out_axes
from edgelora_tools.reference_resampling import RESAMPLING
from edgelora_tools.runner import open_session


def padded(axes: list[int], computed: bool, value: bool) -> ir.Model:
    """Transpose(Pad(Transpose(x))), back and forth, of rank 4, with pads 1, 2, … at `axes`."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="padded")
    op = GraphBuilder(graph).op
    x = op.builder.input("x", ir.DataType.FLOAT, [2, 3, 4, 5])
    turned = op.Transpose(x, perm=[0, 2, 3, 1])
    turned.shape, turned.type = ir.Shape([2, 4, 5, 3]), x.type
    pads = op.Constant(value_ints=list(range(1, 2 * len(axes) + 1)))
    if computed:
        pads = op.Add(pads, op.Sub(op.Shape(x, start=0, end=1), [2]))
    number = op.Constant(value_float=7.0) if value else None
    wide = op.Pad(turned, pads, number, op.Constant(value_ints=axes))
    y = op.Transpose(wide, perm=[0, 3, 1, 2])
    y.name, y.type, y.shape = "y", x.type, ir.Shape([None] * 4)
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("computed", [False, True], ids=["constant", "computed"])
@pytest.mark.parametrize("value", [False, True], ids=["zeros", "sevens"])
@pytest.mark.parametrize("axes", [[2, 3], [-1], [3, 1], [0, 1, 2, 3]], ids=str)
def test_the_result_is_numpys(axes, value, computed):
    model = padded(axes, computed, value)
    spell_out_axes(model)
    assert all(len(node.inputs) < 4 for node in model.graph if node.op_type == "Pad")
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    with open_session(model) as session:
        (got,) = session.run(None, {"x": x})
    width = [(0, 0)] * 4
    for n, axis in enumerate(axes):
        width[axis] = (n + 1, n + 1 + len(axes))
    wanted = np.pad(x.transpose(0, 2, 3, 1), width, constant_values=7.0 * value)
    np.testing.assert_array_equal(got, wanted.transpose(0, 3, 1, 2))


def resized(axes: list[int], how: str, batch: int | str, **attributes: Any) -> ir.Model:
    """Transpose(Resize(Transpose(x))), back and forth, of rank 4 with its channels last in between."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="resized")
    op = GraphBuilder(graph).op
    x = op.builder.input("x", ir.DataType.FLOAT, [batch, 3, 4, 5])
    turned = op.Transpose(x, perm=[0, 2, 3, 1])
    turned.shape, turned.type = ir.Shape([batch, 4, 5, 3]), x.type
    wanted = {1: 8, 2: 15, -2: 15, 3: 6}
    before = {1: 4, 2: 5, -2: 5, 3: 3}
    scales = sizes = None
    if how == "scales":
        scales = op.Constant(value_floats=[wanted[axis] / before[axis] for axis in axes])
    else:
        sizes = op.Constant(value_ints=[wanted[axis] for axis in axes])
    if how == "computed sizes":
        sizes = op.Add(sizes, op.Sub(op.Shape(x, start=2, end=3), [4]))
    large = op.Resize(turned, None, scales, sizes, axes=axes, mode="linear", **attributes)
    y = op.Transpose(large, perm=[0, 3, 1, 2])
    y.name, y.type, y.shape = "y", x.type, ir.Shape([None] * 4)
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("batch", [2, "batch"])
@pytest.mark.parametrize("how", ["scales", "sizes", "computed sizes"])
@pytest.mark.parametrize("axes", [[1, 2], [-2, 1], [2]], ids=str)
@pytest.mark.parametrize("mapping", ["half_pixel", "align_corners", "asymmetric"])
def test_a_resize_is_the_evaluators(axes, how, batch, mapping):
    model = resized(axes, how, batch, coordinate_transformation_mode=mapping)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(ir.to_proto(model), new_ops=list(RESAMPLING)).run(None, {"x": x})
    spell_out_axes(model)
    assert all("axes" not in node.attributes for node in model.graph if node.op_type == "Resize")
    with open_session(model) as session:
        (got,) = session.run(None, {"x": x})
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-5, atol=1e-6)


def test_a_resize_whose_axes_mean_more_keeps_them():
    model = resized([1, 2], "sizes", 2, keep_aspect_ratio_policy="not_larger")
    spell_out_axes(model)
    assert any("axes" in node.attributes for node in model.graph if node.op_type == "Resize")


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_scales_stand_for_sizes_where_they_give_them_again(before, after):
    """As ONNX says: the size after is ⌊before · scale⌋, here in float32, and the scale of sizes is after / before."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="sizes")
    op = GraphBuilder(graph).op
    x = op.builder.input("x", ir.DataType.FLOAT, ["batch", 3, before, 1])
    y = op.Resize(x, None, None, op.Constant(value_ints=[after]), axes=[2], mode="linear")
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=10)
    spell_out_axes(model)
    (node,) = (node for node in model.graph if node.op_type == "Resize")
    scale = np.float32(after) / np.float32(before)
    assert (len(node.inputs) == 3) == (int(np.float32(before) * scale) == after)
