"""Grouped queries without repeated keys and values give what they give with them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.passes.shared_heads import share_heads
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.runner import open_session

HEADS, KEPT, SIZE = 6, 2, 8


def attention(axis: int = 2, count: int = HEADS // KEPT) -> ir.Model:
    """softmax(Q·R(K)ᵀ)·R(V); R repeats along `axis` as torch's expand does, `count` times."""
    q = ir.val("q", ir.DataType.FLOAT, ["batch", HEADS, "queries", SIZE])
    k, v = (ir.val(name, ir.DataType.FLOAT, ["batch", KEPT, "slots", SIZE]) for name in "kv")
    graph = ir.Graph([q, k, v], [], nodes=[], opset_imports={"": 21}, name="attention")
    op = GraphBuilder(graph).op

    def repeated(x: ir.Value) -> ir.Value:
        batch, slots = op.Shape(x, start=0, end=1), op.Shape(x, start=2, end=3)
        whole = [batch, [KEPT], slots, [SIZE]]
        whole.insert(axis, [count])
        wide = op.Expand(op.Unsqueeze(x, [axis]), op.Concat(*whole, axis=0))
        return op.Reshape(wide, op.Concat(batch, [KEPT * count], slots, [SIZE], axis=0))

    scores = op.Mul(op.MatMul(q, op.Transpose(repeated(k), perm=[0, 1, 3, 2])), 0.3)
    y = op.MatMul(op.Softmax(scores, axis=-1), repeated(v))
    y.name, y.dtype = "y", ir.DataType.FLOAT
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=10)
    measure_shapes(model)
    return model


def run(model: ir.Model, batch: int, queries: int, slots: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    feeds = {"q": rng.standard_normal((batch, HEADS, queries, SIZE)).astype(np.float32)}
    feeds |= {name: rng.standard_normal((batch, KEPT, slots, SIZE)).astype(np.float32) for name in "kv"}
    with open_session(tidy(model.clone())) as session:
        return np.asarray(session.run(None, feeds)[0])


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 1, 9), (3, 5, 7)])
def test_shared_heads_give_the_same(sizes: tuple[int, int, int]) -> None:
    model = attention()
    wanted = run(model, *sizes)
    share_heads(model)
    assert "Expand" not in {node.op_type for node in model.graph}
    np.testing.assert_allclose(run(model, *sizes), wanted, rtol=1e-5, atol=1e-6)


def test_heads_in_another_order_stay_as_they_are() -> None:
    model = attention(axis=1)
    before = [node.op_type for node in model.graph]
    assert [node.op_type for node in share_heads(model).graph] == before
