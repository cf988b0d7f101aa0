"""RMS normalization as ONNX Runtime's kernel: the numbers of the standard nodes, forward and backward."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites import recognise_composites
from edgelora_tools.composites.rms_kernel import RMS_KERNEL
from edgelora_tools.gradients.shapes import shaped
from edgelora_tools.graphs import LOWERED
from edgelora_tools.lowering import DOMAIN, lower_nodes
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.runner import open_session

KERNEL = "SimplifiedLayerNormalization"


def model(width, kernel=True, learns=True, dtype=ir.DataType.FLOAT):
    """Y of X `[batch, rows, width]`, normalized with γ from −1 to 2, and with `learns` dX of dY."""
    built = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="rms"))
    op, sizes = built.op, ["batch", "rows", width]
    x = built.input("x", dtype, sizes)
    real = dtype.numpy()
    gamma = op.builder.initializer(ir.tensor(np.linspace(-1, 2, width, dtype=real), name="gamma"))
    two, epsilon = (op.builder.initializer(ir.tensor(np.asarray(v, real), name=str(v))) for v in (2.0, 1e-5))
    mean = op.ReduceMean(op.Pow(x, two), [-1], keepdims=1)
    y = shaped(op.Mul(op.Div(x, op.Sqrt(op.Add(mean, epsilon))), gamma), sizes, x)
    built.add_output(y, "y")
    made = ir.Model(built.graph, ir_version=10)
    recognise_composites(made)
    assert [node.op_type for node in made.graph if node.domain == DOMAIN] == ["RMSNormalization"]
    op = GraphBuilder(free_names(made.graph)).op
    if learns:
        dy = op.builder.input("dy", dtype, sizes)
        (dx,) = differentiate(op, list(made.graph), {made.graph.outputs[0]: dy}, [made.graph.inputs[0]]).values()
        dx.name = "dx"
        made.graph.outputs.append(dx)
    lower_nodes(made.graph, op, LOWERED | ({RMS_KERNEL.op_type: RMS_KERNEL} if kernel else {}))
    return tidy(made)


def operators(found):
    return [node.op_type for node in found.graph]


@given(st.integers(0, 3), st.integers(0, 5), st.integers(1, 40), st.sampled_from([1e-4, 1.0, 1e3]))
def test_the_kernel_computes_what_the_standard_nodes_do(batch, rows, width, size):
    rng = np.random.default_rng(batch + 7 * rows + 49 * width)
    x, dy = rng.standard_normal((2, batch, rows, width))
    feeds = {"x": (size * x).astype(np.float32), "dy": dy.astype(np.float32)}
    made = []
    for kernel in (True, False):
        found = model(width, kernel)
        assert operators(found).count(KERNEL) == kernel
        with open_session(found) as session:
            made.append([np.asarray(y) for y in session.run(["y", "dx"], feeds)])
    for got, wanted in zip(*made, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5 * max(1.0, float(np.abs(wanted).max(initial=0))))


def test_the_backward_pass_reads_s_and_computes_no_root():
    assert "Sqrt" not in operators(model(8)) and operators(model(8)).count("ReduceMean") == 1


@pytest.mark.parametrize(("learns", "dtype"), [(False, ir.DataType.FLOAT), (True, ir.DataType.DOUBLE)])
def test_the_standard_nodes_stay_without_a_gradient_or_in_64_bits(learns, dtype):
    found = model(8, learns=learns, dtype=dtype)
    assert KERNEL not in operators(found) and "Sqrt" in operators(found)
