"""Models with ONNX Runtime's operators between their linear layers convert, agree with the source and train."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from tests.convert import networks
from tests.convert.bundles import SIZES, assert_checked, assert_same_outputs, to_bundle
from tests.convert.networks import FLOAT, WIDTH, Net, save

MS = "com.microsoft"


def with_contributed(model: onnx.ModelProto) -> onnx.ModelProto:
    model.opset_import.append(helper.make_opsetid(MS, 1))
    return model


def sequence_model(net: Net, y: str) -> onnx.ModelProto:
    """x `[batch, sequence, width]` to the value `y`."""
    net.output(y, "y")
    inputs = [("x", FLOAT, ["batch", "sequence", WIDTH])]
    return with_contributed(net.model(inputs, [("y", FLOAT, ["batch", "sequence", 5])], check=False))


def products(net: Net) -> str:
    x = net.linear("x", "first", WIDTH, WIDTH)
    y = net("FusedMatMul", x, net.weight("second.weight", 8, WIDTH), transB=1, alpha=0.7, domain=MS)
    scores = net("FusedMatMul", x, x, transB=1, alpha=0.2, domain=MS)
    mixed = net("FusedMatMul", net.softmax(scores), y, domain=MS)
    rows = net("Reshape", mixed, net.const([-1, 8], np.int64))
    bias = net.weight("third.bias", WIDTH, scale=0.1)
    rows = net("FusedGemm", rows, net.weight("third.weight", 8, WIDTH), bias, activation="Tanh", domain=MS)
    return net.linear(net("Reshape", rows, net("Shape", x)), "last", WIDTH, 5)


def activations(net: Net) -> str:
    x = net("BiasGelu", net.linear("x", "first", WIDTH, WIDTH, bias=False), net.weight("first.b", WIDTH), domain=MS)
    x = net("FastGelu", net.linear(x, "second", WIDTH, WIDTH), domain=MS)
    x = net("QuickGelu", net.linear(x, "third", WIDTH, WIDTH), domain=MS)
    return net.linear(net("Gelu", x, domain=MS), "last", WIDTH, 5)


def normalizations(net: Net) -> str:
    scales = [net.weight(f"scale{i}", WIDTH, scale=1.0) for i in range(4)]
    x = net.linear("x", "first", WIDTH, WIDTH)
    y, _, _, total = net("SkipLayerNormalization", x, "x", scales[0], scales[1], scales[2], outputs=4, domain=MS)
    y = net.linear(y, "second", WIDTH, WIDTH)
    y = net("SkipSimplifiedLayerNormalization", y, total, scales[3], domain=MS)
    y = net("SimplifiedLayerNormalization", net.linear(y, "third", WIDTH, WIDTH), scales[0], axis=-1)
    return net.linear(y, "last", WIDTH, 5)


def attention(net: Net) -> str:
    packed, bias = net.weight("packed", WIDTH, 3 * WIDTH), net.weight("packed_bias", 3 * WIDTH, scale=0.1)
    y = net("Attention", "x", packed, bias, num_heads=2, unidirectional=1, name="self", domain=MS)
    parts = [net.linear(y, name, WIDTH, WIDTH) for name in ("query", "key", "value")]
    y = net("MultiHeadAttention", *parts, num_heads=4, domain=MS)
    return net.linear(y, "last", WIDTH, 5)


def group_query(net: Net) -> str:
    """Rotated heads of 16, two for one of keys and values; the last row of a batch is the shortest."""
    batch = net("Shape", "x", start=0, end=1)
    length = net("Shape", "x", start=1, end=2)
    lengths = net("Cast", net("Expand", net("Sub", length, net.const([1], np.int64)), batch), to=6)
    whole = net("Cast", net("Squeeze", length), to=6)
    angles = np.outer(np.arange(512), 0.6 ** np.arange(8))
    tables = [net.const(f(angles)) for f in (np.cos, np.sin)]
    q = net.linear("x", "q_proj", WIDTH, 32)
    k, v = (net.linear("x", name, WIDTH, 16) for name in ("k_proj", "v_proj"))
    rows = net("Range", net.const(0, np.int64), net("Squeeze", length), net.const(1, np.int64))
    places = net("Expand", net("Unsqueeze", rows, net.const([0], np.int64)), net("Concat", batch, length, axis=0))
    q = net("RotaryEmbedding", q, places, *tables, domain=MS)
    inputs = [q, k, v, "", "", lengths, whole, *tables]
    y, *_ = net("GroupQueryAttention", *inputs, num_heads=2, kv_num_heads=1, do_rotary=1, local_window_size=4,
                outputs=3, domain=MS)  # fmt: skip
    return net.linear(y, "last", 32, 5)


@pytest.mark.parametrize("opset", [11, 12, 15, 17, 18, 21, 23])
@pytest.mark.parametrize("build", [products, activations, normalizations, attention, group_query])
def test_a_model_of_the_family(build, opset, tmp_path):
    if build is group_query and opset < 15:
        pytest.skip("the network is written with operators of opset 15")
    model = sequence_model(net := Net(opset), build(net))
    source = save(model, tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert "last" in {p.id for p in bundle.manifest.points}
    for batch, length in SIZES:
        x = np.random.default_rng(length).standard_normal((batch, length, WIDTH)).astype(np.float32)
        assert_same_outputs(bundle, source, {"x": x})
    if opset in (11, 17, 21):
        assert_checked(bundle)
    assert not bundle.manifest.lost


def test_packed_weights_are_one_point(tmp_path):
    bundle = to_bundle(sequence_model(net := Net(17), attention(net)), tmp_path)
    points = {p.id: (p.in_features, p.out_features) for p in bundle.manifest.points}
    assert points["self.query_key_value"] == (WIDTH, 3 * WIDTH)


def test_softmax_of_old_opsets_after_an_operator_that_onnx_does_not_define(tmp_path):
    """The converter needs the rank of Softmax's input, which ONNX Runtime alone can tell."""
    net = Net(11)
    x = net("FusedMatMul", net.linear("x", "first", WIDTH, WIDTH), net.weight("w.weight", WIDTH, 8), domain=MS)
    source = save(sequence_model(net, net.linear(net("Softmax", x, axis=2), "last", 8, 5)), tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert_same_outputs(bundle, source, {"x": np.ones((2, 3, WIDTH), np.float32)})
    assert_checked(bundle)


def test_a_form_that_is_not_covered_is_named_with_its_reason(tmp_path):
    model = networks.perceptron(
        17, lambda net, x: net("Squeeze", net("RotaryEmbedding", net("Reshape", x, net.const([-1, 1, WIDTH], np.int64)),
        net.const([0], np.int64), net.const(np.ones((2, 4))), net.const(np.ones((2, 4))), scale=2.0, domain=MS,
        name="odd"), net.const([1], np.int64)),
    )  # fmt: skip
    bundle = to_bundle(with_contributed(model), tmp_path)
    (lost,) = bundle.manifest.lost
    assert lost.id == "first"
    assert lost.blocked_by.startswith("com.microsoft::RotaryEmbedding (node odd): has a scale")


def test_inside_a_branch(tmp_path):
    """An operator in the body of an If is written out there."""
    net = Net(21)
    x = net.linear("x", "first", WIDTH, WIDTH)
    bias = net.weight("inner", WIDTH)
    bodies = [
        helper.make_graph(
            [helper.make_node(op_type, [x, bias], [f"{branch}_y"], f"{branch}_{op_type}", domain=domain)],
            branch, [], [helper.make_tensor_value_info(f"{branch}_y", FLOAT, ["batch", WIDTH])],
        )
        for branch, op_type, domain in (("then", "BiasGelu", MS), ("else", "Add", ""))
    ]  # fmt: skip
    condition = net("Greater", net("Squeeze", net("Shape", "x", start=0, end=1)), net.const(2, np.int64))
    y = net("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    net.output(net.linear(y, "last", WIDTH, 5), "y")
    model = net.model([("x", FLOAT, ["batch", WIDTH])], [("y", FLOAT, ["batch", 5])], check=False)
    source = save(with_contributed(model), tmp_path)
    bundle = to_bundle(source, tmp_path)
    kept = {n.op_type for n in ir.load(bundle.path / bundle.manifest.forward).graph.all_nodes()}
    assert "Gelu" in kept
    assert "BiasGelu" not in kept
    for rows in (1, 2, 3, 9):
        x = np.random.default_rng(rows).standard_normal((rows, WIDTH)).astype(np.float32)
        assert_same_outputs(bundle, source, {"x": x})
    assert_checked(bundle)
