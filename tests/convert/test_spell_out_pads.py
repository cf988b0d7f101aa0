"""Pads with `axes` mean the same without them, and run on ONNX Runtime between transpositions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.passes.spell_out_pads import spell_out_pads
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
    spell_out_pads(model)
    assert all(len(node.inputs) < 4 for node in model.graph if node.op_type == "Pad")
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    with open_session(model) as session:
        (got,) = session.run(None, {"x": x})
    width = [(0, 0)] * 4
    for n, axis in enumerate(axes):
        width[axis] = (n + 1, n + 1 + len(axes))
    wanted = np.pad(x.transpose(0, 2, 3, 1), width, constant_values=7.0 * value)
    np.testing.assert_array_equal(got, wanted.transpose(0, 3, 1, 2))
