"""Models that are quantized already: codes stay codes, outputs the source's, every point can be adapted and trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from edgelora.adapter import absent_adapter
from edgelora.check import check
from edgelora.gradient_checks import check_point
from edgelora.parity import PARITY_TOLERANCE, parity_samples
from edgelora_tools.passes.keep_codes import keep_codes
from edgelora_tools.runner import open_session
from tests.convert import networks
from tests.convert.bundles import SIZES, assert_same_outputs, base_outputs, to_bundle
from tests.convert.networks import FLOAT, Net, save, tokens_of

POINTS = {f"encoder.layer.0.{name}" for name in ("attention.query_key", "attention.value", "attention.output", "up")}
POINTS.add("encoder.layer.0.down")


class Calibration(quantization.CalibrationDataReader):
    """A few batches of tokens."""

    def __init__(self):
        self.batches = iter([tokens_of(3, 9, seed) for seed in range(6)])

    def get_next(self):
        return next(self.batches, None)


def dynamic(source, target, **options):
    quantization.quantize_dynamic(source, target, **options)


def static(source, target, **options):
    quantization.quantize_static(source, target, Calibration(), **options)


def four_bits(source, target, **options):
    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=16, **options)
    quantizer.process()
    made: Any = quantizer.model
    made.save_model_to_file(str(target))


QInt8, QUInt8, QUInt16 = quantization.QuantType.QInt8, quantization.QuantType.QUInt8, quantization.QuantType.QUInt16
QDQ, QOPERATOR = quantization.QuantFormat.QDQ, quantization.QuantFormat.QOperator
WAYS = {
    "dynamic": (dynamic, {"weight_type": QInt8, "reduce_range": True}),
    "dynamic-columns": (dynamic, {"weight_type": QUInt8, "per_channel": True}),
    "static-qdq": (static, {"quant_format": QDQ, "weight_type": QInt8, "reduce_range": True}),
    "static-qdq-columns": (static, {"quant_format": QDQ, "activation_type": QUInt16, "per_channel": True}),
    "static-qoperator": (static, {"quant_format": QOPERATOR, "weight_type": QInt8, "reduce_range": True}),
    "four-bits": (four_bits, {"is_symmetric": True}),
    "four-bits-zeros": (four_bits, {"is_symmetric": False}),
    "four-bits-qdq": (four_bits, {"is_symmetric": True, "quant_format": QDQ}),
}
PARITY = {"static-qoperator": PARITY_TOLERANCE["int8"]}
"""Integer kernels and real numbers between codes round differently now and then; all others compute alike."""


@pytest.fixture(scope="module", params=WAYS)
def quantized(request, tmp_path_factory):
    """The name of a way to quantize, the model and its bundle. The mask is gentle: -10000 leaves scores no codes."""
    folder = tmp_path_factory.mktemp("quantized")
    model = networks.transformer(21, pooler=False)
    for tensor in model.graph.initializer:
        if np.array_equal(numpy_helper.to_array(tensor), np.float32(-10000)):
            tensor.CopyFrom(numpy_helper.from_array(np.array(-20, np.float32), tensor.name))
    model.ir_version = 10
    source, target = save(model, folder, "real.onnx"), folder / f"{request.param}.onnx"
    way, options = WAYS[request.param]
    way(source, target, **options)
    return request.param, target, to_bundle(target, folder, "out")


def codes_of(model):
    """The initializers of codes, by what they hold."""
    kinds = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    return [t for t in model.graph.initializer if t.data_type in kinds and np.prod(t.dims) > 100]


def forward_of(bundle):
    return onnx.load(bundle.path / "forward.onnx")


def test_outputs_are_the_sources(quantized):
    name, source, bundle = quantized
    for size in SIZES[:4]:
        inputs = tokens_of(*size)
        assert_same_outputs(bundle, source, inputs, PARITY.get(name, 1e-5))


def test_products_are_points_under_their_modules_names(quantized):
    _, _, bundle = quantized
    assert {point.id for point in bundle.manifest.points} == POINTS


def test_codes_stay_codes(quantized):
    _, _, bundle = quantized
    graph = forward_of(bundle)
    assert len(codes_of(graph)) >= 4
    shapes = {(p.in_features, p.out_features) for p in bundle.manifest.points}
    real = [t for t in graph.graph.initializer if t.data_type == FLOAT and tuple(t.dims) in shapes]
    quantized_products = {"down"} if "four-bits" in quantized[0] else set()  # MatMulNBits has no Gemm
    assert len(real) == len(quantized_products)


def test_no_operators_of_other_domains(quantized):
    _, _, bundle = quantized
    for path in bundle.path.glob("*.onnx"):
        assert {node.domain for node in onnx.load(path, load_external_data=False).graph.node} <= {"", "ai.onnx"}


def test_check_passes(quantized):
    _, _, bundle = quantized
    verdict = check(bundle)
    assert verdict.passed, verdict


def passes_with(bundle, point, factor, monkeypatch):
    """Whether the check passes the point when the gradient of its A comes out `factor` times as large."""
    graph = bundle.graph(bundle.training("cotangent", dropout=False).file)
    run = type(graph).run

    def wrong(self, feeds, outputs=None):
        made = run(self, feeds, outputs)
        return {n: y * np.float32(factor) if n == f"grad.{point.input_a}" else y for n, y in made.items()}

    monkeypatch.setattr(type(graph), "run", wrong)
    inputs = parity_samples(bundle)[1][0]
    return check_point(bundle, point, inputs, np.random.default_rng(0)).passed


@pytest.mark.parametrize("factor", [-1.0, 0.5, 2.0, 0.0])
def test_check_finds_wrong_gradients_behind_rounding(quantized, factor, monkeypatch):
    _, _, bundle = quantized
    point = next(p for p in bundle.manifest.points if p.id.endswith("up"))
    assert not passes_with(bundle, point, factor, monkeypatch)


def test_training_lowers_the_loss(quantized):
    """Plain gradient steps on every adapter towards outputs that the base does not have."""
    _, _, bundle = quantized
    rng = np.random.default_rng(0)
    inputs = tokens_of(3, 6)
    graph = bundle.graph(bundle.training("cotangent", dropout=False).file)
    values = absent_adapter(bundle.manifest)
    for point in bundle.manifest.points:
        values[point.input_a] = (rng.standard_normal((point.in_features, 4)) / 4).astype(np.float32)
        values[point.input_b] = np.zeros((4, point.out_features), np.float32)
    wanted = rng.standard_normal(base_outputs(bundle, inputs)["last_hidden_state"].shape).astype(np.float32)

    def loss_and_slope():
        y = bundle.forward.run({**inputs, **values})["last_hidden_state"]
        return float(np.mean((y - wanted) ** 2)), 2 * (y - wanted) / y.size

    first, dy = loss_and_slope()
    for _ in range(30):
        grads = graph.run({**inputs, **values, "cotangent.last_hidden_state": dy.astype(np.float32)})
        for name in values:
            values[name] -= np.float32(0.5) * grads[f"grad.{name}"]
        last, dy = loss_and_slope()
    assert last < 0.8 * first


def cast_and_scaled(width=64):
    """A network whose weights and table are Mul(Cast(codes), scale), as tools for browsers write them."""
    net = Net(17)
    rng = np.random.default_rng(0)

    def weight(name, rows, columns, shape):
        net.weights[f"{name}_q"] = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
        scale = net.const(rng.uniform(0.0005, 0.002, shape))
        return net("Mul", net("Cast", f"{name}_q", to=FLOAT), scale)

    x = net("Gather", weight("words.weight", 50, width, (50, 1)), "input_ids")
    x = net("Tanh", net("MatMul", x, weight("first.weight", width, width, (1, width))))
    x = net("Tanh", net("MatMul", x, weight("second.weight", width, width, ())))
    x = net("MatMul", x, net("Transpose", weight("third.weight", width, width, (width, 1)), perm=[1, 0]))
    net.output(x, "last_hidden_state")
    outputs = [("last_hidden_state", FLOAT, ["batch", "sequence", width])]
    return net.model([("input_ids", networks.INT64, ["batch", "sequence"])], outputs)


def test_cast_and_scaled_weights(tmp_path):
    source = save(cast_and_scaled(), tmp_path)
    bundle = to_bundle(source, tmp_path)
    assert {p.id for p in bundle.manifest.points} == {"first", "second", "third"}
    graph = forward_of(bundle)
    assert len(codes_of(graph)) == 4
    assert all(np.prod(t.dims) <= 64 for t in graph.graph.initializer if t.data_type == FLOAT)
    assert bundle.manifest.source["precision"] == "float32"
    for size in SIZES:
        ids = np.random.default_rng(0).integers(0, 50, size)
        assert_same_outputs(bundle, source, {"input_ids": ids}, 1e-6)
    assert check(bundle).passed


@pytest.mark.parametrize("scale", [(), (1,), (50, 1), (1, 64)], ids=str)
def test_rows_of_codes_are_gathered_exactly(scale):
    net = Net(21)
    rng = np.random.default_rng(0)
    net.weights["q"] = rng.integers(-127, 128, (50, 64)).astype(np.int8)
    table = net("Mul", net.const(rng.uniform(0.001, 0.01, scale)), net("Cast", "q", to=FLOAT))
    net.output(net("Gather", table, "ids"), "y")
    proto = net.model([("ids", networks.INT64, ["a", "b"])], [("y", FLOAT, ["a", "b", 64])])
    ids = rng.integers(0, 50, (3, 5))
    model = keep_codes(ir.from_proto(proto))
    tables = [node.inputs[0] for node in model.graph if node.op_type == "Gather"]
    assert [x.dtype for x in tables if x is not None and x.name == "q"] == [ir.DataType.INT8]
    assert not any(x is not None and x.dtype == ir.DataType.FLOAT and x.name != "q.scales" for x in tables)
    with open_session(ir.from_proto(proto)) as before, open_session(model) as after:
        np.testing.assert_array_equal(before.run(None, {"ids": ids})[0], after.run(None, {"ids": ids})[0])


class Pictures(Calibration):
    """A few batches of noise."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.batches = iter([{"x": rng.standard_normal((4, 3, 9, 9)).astype(np.float32)} for _ in range(6)])


@pytest.fixture(scope="module", params=["dynamic", "static-qdq", "static-qoperator"])
def convolutions(request, tmp_path_factory):
    """Three convolutions, the second in groups, with a LeakyRelu between them, as ONNX Runtime quantizes them."""
    folder, net, x = tmp_path_factory.mktemp("convolutions"), Net(17), "x"
    layers: list[tuple[str, int, int, dict[str, Any]]] = [
        ("stem", 3, 8, {"strides": [2, 2]}),
        ("depth", 1, 8, {"group": 8}),
        ("end", 8, 6, {}),
    ]
    for name, inner, outer, rest in layers:
        weights = net.weight(f"{name}.weight", outer, inner, 3, 3, scale=0.3), net.weight(f"{name}.bias", outer)
        x = net("LeakyRelu", net("Conv", x, *weights, name=name, pads=[1, 1, 1, 1], **rest), alpha=0.3)
    net.output(net("GlobalAveragePool", x), "y")
    made = net.model([("x", FLOAT, ["batch", 3, "height", "width"])], [("y", FLOAT, None)], check=False)
    source, target = save(made, folder, "real.onnx"), folder / "quantized.onnx"
    options: dict[str, Any] = {"weight_type": QInt8, "reduce_range": True}
    if request.param == "dynamic":
        quantization.quantize_dynamic(source, target, op_types_to_quantize=["Conv"], **options)
    else:
        chosen = QDQ if request.param == "static-qdq" else QOPERATOR
        quantization.quantize_static(source, target, Pictures(), quant_format=chosen, **options)
    return request.param, target, to_bundle(target, folder, "out", target_modules=".*")


def test_quantized_convolutions_are_points(convolutions):
    way, source, bundle = convolutions
    points = {(p.op, p.in_features, p.out_features, p.groups) for p in bundle.manifest.points}
    op = "ConvInteger" if way == "dynamic" else "Conv"
    assert points == {(op, 3, 8, 1), (op, 8, 8, 8), (op, 8, 6, 1)}
    for shape in ((1, 3, 9, 9), (3, 3, 12, 7)):
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        assert_same_outputs(bundle, source, {"x": x}, PARITY.get(way, PARITY_TOLERANCE["int8"]))


def test_quantized_convolutions_have_right_gradients(convolutions):
    verdict = check(convolutions[2])
    assert verdict.passed, verdict
    assert len(verdict.points) == 3


@pytest.mark.parametrize("factor", [-1.0, 0.5, 2.0])
def test_check_finds_wrong_gradients_of_quantized_convolutions(convolutions, factor, monkeypatch):
    _, _, bundle = convolutions
    point = bundle.manifest.points[0]
    assert not passes_with(bundle, point, factor, monkeypatch)
