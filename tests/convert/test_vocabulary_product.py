"""Logits from codes of a vocabulary's matrix: what the codes stand for, one tensor with the table, never all real."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites.quantized import features, is_quantized
from edgelora_tools.composites.vocabulary_product import OP_TYPE, VocabularyProduct
from edgelora_tools.graphs import LOWERED
from edgelora_tools.lowering import lower_nodes
from edgelora_tools.methods.prompt import Prompt
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.quantize import Choice, Rung, quantize
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.runner import open_session

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def language(table: np.ndarray, head: np.ndarray | None, bias: np.ndarray | None, lead: int) -> ir.Model:
    """Embeddings of tokens and, of any hidden states, logits; a head of None is the table."""
    vocabulary, width = table.shape
    axes = [f"axis{i}" for i in range(lead)]
    weights = {"embed.weight": table} | ({} if head is None else {"lm_head.weight": head.T})
    weights |= {} if bias is None else {"lm_head.bias": bias}
    nodes = [helper.make_node("Gather", ["embed.weight", "ids"], ["embedded"])]
    product = "logits" if bias is None else "product"
    if head is None:
        turned = helper.make_node("Transpose", ["embed.weight"], ["turned"], perm=[1, 0])
        gemm = helper.make_node("Gemm", ["hidden", "embed.weight"], [product], transB=1)
        nodes += [gemm] if lead == 1 else [turned, helper.make_node("MatMul", ["hidden", "turned"], [product])]
    else:
        nodes.append(helper.make_node("MatMul", ["hidden", "lm_head.weight"], [product]))
    if bias is not None:
        nodes.append(helper.make_node("Add", [product, "lm_head.bias"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "language",
        [
            helper.make_tensor_value_info("ids", INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("hidden", FLOAT, [*axes, width]),
        ],
        [
            helper.make_tensor_value_info("embedded", FLOAT, ["batch", "sequence", width]),
            helper.make_tensor_value_info("logits", FLOAT, [*axes, vocabulary]),
        ],
        [numpy_helper.from_array(x.astype(np.float32), name) for name, x in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def lowered(model: ir.Model, most: int) -> ir.Model:
    op = GraphBuilder(free_names(model.graph)).op
    lower_nodes(model.graph, op, LOWERED | {OP_TYPE: VocabularyProduct(most)})
    return tidy(model)


def real(codes: ir.Value | None, scale: ir.Value | None) -> np.ndarray:
    assert codes is not None and codes.const_value is not None and scale is not None and scale.const_value is not None
    return codes.const_value.numpy().astype(np.float64) * scale.const_value.numpy()[:, None]


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_head_computes_what_its_codes_stand_for(data: st.DataObject) -> None:
    """Of any size, in blocks of any: the last may be smaller. No number is further from its code than half a step."""
    vocabulary, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 24))
    lead = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    w = rng.standard_normal((vocabulary, width)) * np.exp(rng.uniform(-8, 8, (vocabulary, 1)))
    bias = rng.standard_normal(vocabulary) if data.draw(st.booleans()) else None
    model = language(rng.standard_normal((5, width)), w, bias, len(lead))
    quantize(model, {"lm_head.weight": Choice(Rung.TOKENS_8)})
    (node,) = [node for node in model.graph if is_quantized(node)]
    assert node.op_type == OP_TYPE and features(node) == (width, vocabulary)
    decoded = real(node.inputs[1], node.inputs[2])
    assert (np.abs(decoded - w) <= np.abs(w).max(1, keepdims=True) / 127 * 0.501).all()
    x = rng.standard_normal((*lead, width)).astype(np.float32)
    with open_session(lowered(model, data.draw(st.integers(1, 80)))) as session:
        (y,) = (np.asarray(y) for y in session.run(["logits"], {"hidden": x, "ids": np.zeros((1, 1), np.int64)}))
    assert y.shape == (*lead, vocabulary)
    span = np.abs(x).max() * np.abs(decoded).max(1) * width
    wanted = x @ decoded.T + (0 if bias is None else bias)
    assert (np.abs(y - wanted) <= 1e-5 * (span + np.abs(wanted))).all()


@pytest.mark.parametrize("vocabulary", [40, 300])  # with rows of 16 numbers, one table is too small for codes alone
def test_a_tied_table_reads_the_heads_codes(vocabulary: int) -> None:
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((vocabulary, 16)), rng.standard_normal((3, 16)).astype(np.float32)
    model = language(w, None, None, 1)
    quantize(model, {"embed.weight": Choice(Rung.TOKENS_8)})
    (node,) = [node for node in model.graph if is_quantized(node)]
    decoded = real(node.inputs[1], node.inputs[2])
    matrices = [v for v in model.graph.initializers.values() if v.shape and tuple(v.shape) == (vocabulary, 16)]
    assert matrices == [node.inputs[1]] and matrices[0].dtype == ir.DataType.INT8
    ids = rng.integers(0, vocabulary, (2, 7))
    with open_session(lowered(model, 64)) as session:
        embedded, logits = map(np.asarray, session.run(["embedded", "logits"], {"hidden": x, "ids": ids}))
    np.testing.assert_allclose(embedded, decoded[ids], rtol=1e-6)
    np.testing.assert_allclose(logits, x @ decoded.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_real_head_leaves_its_table_as_it_was(tied: bool) -> None:
    rng = np.random.default_rng(0)
    model = language(rng.standard_normal((300, 16)), None if tied else rng.standard_normal((300, 16)), None, 1)
    quantize(model, {"embed.weight": Choice(Rung.REAL), "lm_head.weight": Choice(Rung.REAL)})
    table = model.graph.initializers.get("embed.weight")
    assert (table is not None) == tied  # an untied one has codes of its own
    assert not any(is_quantized(node) for node in model.graph)


def test_virtual_tokens_stand_before_words_that_are_codes() -> None:
    rng = np.random.default_rng(0)
    model = language(rng.standard_normal((300, 16)), None, None, 1)
    quantize(model, {"embed.weight": Choice(Rung.TOKENS_8)})
    (node,) = [node for node in model.graph if is_quantized(node)]
    decoded, prompt = real(node.inputs[1], node.inputs[2]), Prompt()
    (site,) = prompt.sites(model, ())
    assert site.point.out_features == 16
    placed = prompt.place(GraphBuilder(free_names(model.graph)).op, [site], dropout=False)
    virtual, ids = rng.standard_normal((3, 16)).astype(np.float32), rng.integers(0, 300, (2, 5))
    feeds = {str(placed.inputs[0].name): virtual, "ids": ids, "hidden": np.zeros((1, 16), np.float32)}
    with open_session(lowered(model, 64)) as session:
        (embedded,) = session.run(["embedded"], feeds)
    wanted = np.concatenate([np.broadcast_to(virtual, (2, 3, 16)), decoded[ids]], axis=1)
    np.testing.assert_allclose(np.asarray(embedded), wanted, rtol=1e-6)
