"""Every expansion against ONNX Runtime's own kernel in float32, with static and with dynamic shapes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from edgelora_tools.expansions import EXPANSIONS
from edgelora_tools.passes.expand import expand
from edgelora_tools.runner import open_session
from tests.expansions.case import Case
from tests.expansions.cases import CASES


def model_of(case: Case, arrays: list[np.ndarray | None], dynamic: bool) -> onnx.ModelProto:
    """The node alone; with `dynamic`, inputs have ranks and nothing more."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(arrays)]
    outputs = [f"y{i}" if i in case.outputs else "" for i in range(max(case.outputs) + 1)]
    node = helper.make_node(case.op, names, outputs, "one", domain=case.domain, **case.attributes)
    inputs, weights = [], []
    for i, x in enumerate(arrays):
        if x is not None and i in case.constants:
            weights.append(numpy_helper.from_array(x, f"x{i}"))
        elif x is not None:
            shape = [None] * x.ndim if dynamic else x.shape
            inputs.append(helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(x.dtype), shape))
    made = [onnx.ValueInfoProto(name=name) for name in outputs if name]
    graph = helper.make_graph([node], "case", inputs, made, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_expansion_matches_the_kernel(case, dynamic):
    rng = np.random.default_rng(0)
    arrays = [
        x if x is None or isinstance(x, np.ndarray) else rng.standard_normal(x).astype(np.float32) for x in case.inputs
    ]
    proto = model_of(case, arrays, dynamic)
    feeds = {f"x{i}": x for i, x in enumerate(arrays) if x is not None and i not in case.constants}
    kernel = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [y.name for y in kernel.get_outputs()]
    wanted = kernel.run(names, feeds)
    model = ir.from_proto(proto)
    expand(model)
    assert {node.domain for node in model.graph} == {""}
    assert not any((node.domain, node.op_type) in EXPANSIONS for node in model.graph)
    assert [y.name for y in model.graph.outputs] == names
    onnx.checker.check_model(ir.to_proto(model))
    with open_session(model, optimize=False) as session:
        got = session.run(names, feeds)
    for y, exact in zip(map(np.asarray, got), map(np.asarray, wanted), strict=True):
        assert y.dtype == exact.dtype
        assert y.shape == exact.shape
        if y.dtype.itemsize == 1 and y.dtype.kind in "iu":  # codes: a number in the middle of two may go either way
            assert np.abs(y.astype(int) - exact.astype(int)).max() <= 1
            continue
        size = max(1.0, float(np.abs(exact).max(initial=0)))
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5 * size)


def test_every_expansion_has_a_case():
    assert set(EXPANSIONS) == {(case.domain, case.op) for case in CASES}
