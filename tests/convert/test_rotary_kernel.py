"""Rotary as ONNX Runtime's kernel: the numbers of the standard nodes, forward and backward, and where it cannot be."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites import recognise_composites
from edgelora_tools.composites.rotary_kernel import ROTARY_KERNEL
from edgelora_tools.gradients.shapes import shaped
from edgelora_tools.graphs import LOWERED
from edgelora_tools.lowering import DOMAIN, lower_nodes
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.runner import open_session

HEADS, WIDTH = 3, 8
FREQUENCIES = (10000.0 ** (-np.arange(WIDTH // 2) / (WIDTH // 2))).astype(np.float32)


def model(kernel, batch="batch", halves="same", last="width"):
    """Y of X `[batch, heads, positions, width]`, turned by the angles of positions `[b, positions]`, and dX of dY."""
    built = GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="rotary"))
    op, sizes = built.op, ["batch", HEADS, "positions", WIDTH]
    x = built.input("x", ir.DataType.FLOAT, sizes)
    places = built.input("places", ir.DataType.INT64, [batch, "positions"])
    constant = op.builder.initializer(ir.tensor(FREQUENCIES, name="frequencies"))
    angles = op.Mul(op.Unsqueeze(op.Cast(places, to=ir.DataType.FLOAT), [-1]), constant)
    second = angles if halves == "same" else op.Mul(angles, 0.5)
    both = shaped(op.Concat(angles, second, axis=-1), [batch, "positions", WIDTH], x)
    tables = [shaped(f(both), [batch, "positions", WIDTH], x) for f in (op.Cos, op.Sin)]
    cos, sin = (shaped(op.Unsqueeze(t, [1]), [batch, 1, "positions", WIDTH], x) for t in tables)
    a, b = (shaped(v, [*sizes[:-1], WIDTH // 2], x) for v in op.Split(x, axis=-1, num_outputs=2, _outputs=2))
    turned = shaped(op.Concat(op.Neg(b), a, axis=-1), sizes, x)
    y = shaped(op.Add(shaped(op.Mul(x, cos), sizes, x), shaped(op.Mul(turned, sin), sizes, x)), sizes, x)
    y.name = "y"
    built.add_output(y, "y")
    made = ir.Model(built.graph, ir_version=10)
    recognise_composites(made)
    assert [node.op_type for node in made.graph if node.domain == DOMAIN] == ["Rotary"]
    op = GraphBuilder(free_names(made.graph)).op
    dy = op.builder.input("dy", ir.DataType.FLOAT, sizes)
    (dx,) = differentiate(op, list(made.graph), {made.graph.outputs[0]: dy}, [made.graph.inputs[0]]).values()
    dx.name = "dx"
    made.graph.outputs.append(dx)
    lower_nodes(made.graph, op, LOWERED | ({ROTARY_KERNEL.op_type: ROTARY_KERNEL} if kernel else {}))
    return tidy(made)


def kernels(found):
    return sum(node.op_type == "RotaryEmbedding" for node in found.graph)


def run(found, feeds):
    with open_session(found) as session:
        return [np.asarray(y) for y in session.run(["y", "dx"], feeds)]


@pytest.mark.parametrize(("batch", "rows"), [("batch", 2), (1, 1)])
@pytest.mark.parametrize("positions", [0, 1, 7])
def test_the_kernel_computes_what_the_standard_nodes_do(batch, rows, positions):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 2, HEADS, positions, WIDTH)).astype(np.float32)
    feeds = {"x": x, "dy": dy, "places": rng.integers(0, 500, (rows, positions))}
    found = model(True, batch)
    assert kernels(found) == 2
    for got, wanted in zip(run(found, feeds), run(model(False, batch), feeds), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_halves_that_turn_by_angles_of_their_own_are_no_kernel():
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 2, HEADS, 5, WIDTH)).astype(np.float32)
    feeds = {"x": x, "dy": dy, "places": rng.integers(0, 500, (2, 5))}
    found = model(True, halves="other")
    assert kernels(found) == 0
    for got, wanted in zip(run(found, feeds), run(model(False, halves="other"), feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)
    _, dx = run(found, feeds)
    step = np.float32(1e-2)
    ahead, behind = (run(found, feeds | {"x": x + s * step * dy})[0] for s in (1, -1))
    along = ((ahead - behind).astype(np.float64) * dy).sum() / (2 * step)
    assert along == pytest.approx((dx.astype(np.float64) * dy).sum(), rel=1e-3)
