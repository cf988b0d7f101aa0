"""Constants that the library's rewrites make stay in the graph, however many one value gives rise to."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from edgelora_tools.normalize import normalize
from edgelora_tools.runner import open_session


def test_a_value_that_is_flattened_several_times():
    """onnxscript turns Flatten into Reshape, and calls the shapes of all of them the same."""
    flat = [helper.make_node("Flatten", ["x"], [f"y{axis}"], axis=axis) for axis in range(4)]
    outputs = [helper.make_tensor_value_info(f"y{axis}", TensorProto.FLOAT, [None, None]) for axis in range(4)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4])
    graph = helper.make_graph(flat, "flat", [x], outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto)
    model = normalize(ir.from_proto(proto)).clone()
    given = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with open_session(model) as session:
        made = session.run(None, {"x": given})
    for got, (rows, columns) in zip(made, [(1, 24), (2, 12), (6, 4), (24, 1)], strict=True):
        np.testing.assert_array_equal(got, given.reshape(rows, columns))
