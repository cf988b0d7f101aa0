"""ONNX sources at every opset that is read: converts, equals the source at several sizes, gradients are right."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConversionError
from edgelora.session import Graph, SessionSettings
from edgelora_tools.normalize import NEWEST_OPSET, OLDEST_OPSET
from tests.convert import networks
from tests.convert.bundles import SIZES, assert_checked, assert_same_outputs, relative, run_onnx, to_bundle, train_feeds
from tests.convert.networks import Net, save, tokens_of

OPSETS = range(OLDEST_OPSET, NEWEST_OPSET + 1)


@pytest.mark.parametrize("opset", OPSETS)
def test_transformer(opset, tmp_path):
    source = save(networks.transformer(opset), tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert [p.id for p in bundle.manifest.points] == [
        "encoder.layer.0.attention.query_key",
        "encoder.layer.0.attention.value",
        "encoder.layer.0.attention.output",
        "encoder.layer.0.up",
        "encoder.layer.0.down",
        "pooler.dense",
    ]
    for batch, length in SIZES:
        assert_same_outputs(bundle, source, tokens_of(batch, length))
    assert_every_graph_is_dynamic(bundle)
    assert_checked(bundle)


def assert_every_graph_is_dynamic(bundle):
    """Every training graph runs at every size and returns a gradient of the adapter's shape."""
    for record in bundle.manifest.training:
        graph = Graph(bundle.path / record.file, SessionSettings())
        for batch, length in SIZES:
            feeds = train_feeds(bundle, tokens_of(batch, length))
            sizes = {"batch": batch, "sequence": length}
            for spec in record.inputs:
                shape = [evaluate_dimension(d, sizes) for d in spec.shape]
                feeds[spec.name] = np.ones(shape, spec.dtype)
            for name, value in graph.run(feeds).items():
                assert np.isfinite(value).all(), name
                if name.startswith("grad."):
                    assert value.shape == feeds[name.removeprefix("grad.")].shape


@pytest.mark.parametrize(("opset", "layer_norm", "gelu", "tanh"), [
    (17, True, False, True),
    (18, False, False, False),
    (19, True, False, True),
    (20, True, True, True),
    (21, False, False, False),
    (22, False, True, False),
    (23, True, False, False),
])  # fmt: skip
def test_other_spellings(opset, layer_norm, gelu, tanh, tmp_path):
    source = save(networks.transformer(opset, layer_norm, gelu, tanh), tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert_same_outputs(bundle, source, tokens_of(3, 7))
    assert_checked(bundle)
    operators = {node.op_type for node in onnx.load(bundle.path / "forward.onnx", load_external_data=False).graph.node}
    assert {"Gelu", "LayerNormalization"} <= operators
    assert not operators & {"Erf", "Pow", "Dropout"}


@pytest.mark.parametrize("opset", [11, 12])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_softmax_flattens_before_opset_13(opset, axis, tmp_path):
    """At opset 11 and 12, axis=1 of [batch, 3, 4] normalises the 12 numbers of a sample together."""
    net = Net(opset)
    x = net.linear("x", "first", 12, 12)
    x = net("Softmax", net("Reshape", x, net.const([-1, 3, 4], np.int64)), axis=axis)
    net.output(net.linear(net("Reshape", x, net.const([-1, 12], np.int64)), "second", 12, 5), "y")
    model = net.model([("x", TensorProto.FLOAT, ["batch", 12])], [("y", TensorProto.FLOAT, ["batch", 5])])
    source = save(model, tmp_path)
    bundle = to_bundle(source, tmp_path)
    for batch in (1, 4):
        inputs = {"x": np.random.default_rng(0).standard_normal((batch, 12)).astype(np.float32)}
        assert_same_outputs(bundle, source, inputs)
    assert_checked(bundle)


@pytest.mark.parametrize("opset", [11, 12])
def test_softmax_default_axis_before_opset_13(opset, tmp_path):
    """The default axis is 1 at opset 11 and 12, and −1 from 13 on."""
    net = Net(opset)
    x = net("Softmax", net.linear("x", "first", 6, 6))
    net.output(net.linear(x, "second", 6, 6), "y")
    shape = ["batch", "sequence", 6]
    model = net.model([("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, shape)])
    source = save(model, tmp_path)
    bundle = to_bundle(source, tmp_path)
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)}
    assert_same_outputs(bundle, source, inputs)
    assert_checked(bundle)


@pytest.mark.parametrize("opset", [1, 7, 10, 24, 99])
def test_other_opsets_are_refused_by_name(opset, tmp_path):
    model = networks.perceptron(13)
    model.opset_import[0].version = opset
    with pytest.raises(ConversionError, match=rf"opset {opset}; EdgeLoRA reads 11 to 23"):
        to_bundle(model, tmp_path)
    assert not (tmp_path / "out.edgelora").exists()


def test_adapter_changes_the_output_as_numpy_says(tmp_path):
    """Gemm with transB, without, and MatMul: y + (x·A)·B at the biased output."""
    net = Net(13)
    hidden = net.gemm(net.gemm("x", "a", 6, 5, transposed=True), "b", 5, 4, transposed=False)
    net.output(net.linear(hidden, "c", 4, 3), "y")
    model = net.model([("x", TensorProto.FLOAT, ["batch", 6])], [("y", TensorProto.FLOAT, ["batch", 3])])
    bundle = to_bundle(model, tmp_path)
    feeds = train_feeds(bundle, {"x": np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)})
    y = feeds["x"].astype(np.float64)
    for name in "abc":
        weight = net.weights[f"{name}.weight"]
        weight = weight.T if name == "a" else weight
        y = y @ weight + net.weights[f"{name}.bias"] + y @ feeds[f"{name}.lora_A"] @ feeds[f"{name}.lora_B"]
    assert relative(bundle.forward.run(feeds)["y"], y) < 1e-6
    plain = run_onnx(tmp_path / "out.onnx", feeds)["y"]
    assert relative(plain, y) > 0.1
