"""Quantizing a base: exact integer products, gradients by rows, points and outputs kept, outliers left real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

from edgelora.bundle import Bundle
from edgelora.byte_products import keep_exact
from edgelora.check import check
from edgelora.cli.main import main
from edgelora.manifest import Manifest
from edgelora_tools.backward import differentiate
from edgelora_tools.builder import GraphBuilder
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.composites.block_product import blocks_of
from edgelora_tools.composites.quantized import features, is_quantized
from edgelora_tools.composites.quantized_product import real_weight
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.graphs import LOWERED
from edgelora_tools.ladders import RUNGS, ladders, rounded
from edgelora_tools.lowering import DOMAIN, lower_nodes
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.quantize import Choice, Rung, quantize
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.runner import open_session
from edgelora_tools.sources.torch_export import module_source
from tests.convert import networks
from tests.convert.bundles import base_outputs, relative, run_onnx, to_bundle, train_feeds
from tests.convert.networks import FLOAT, tokens_of

QUANTIZED = [rung for rung in Rung if rung not in (Rung.REAL, Rung.TOKENS_8)]  # these have a backward pass


def product(
    w: np.ndarray, shape: tuple[int | str, ...], kind: str = "matmul", bias: np.ndarray | None = None
) -> ir.Model:
    """Y = X·W + b by a MatMul, a MatMul and an Add, or a Gemm whose matrix is transposed."""
    weights = {"layer.weight": w.T.copy() if kind == "gemm" else w}
    if bias is not None:
        weights["layer.bias"] = bias
    names = list(weights)
    if kind == "gemm":
        nodes = [helper.make_node("Gemm", ["x", *names], ["y"], transB=1)]
    elif bias is not None:
        nodes = [helper.make_node("MatMul", ["x", names[0]], ["p"]), helper.make_node("Add", ["p", names[1]], ["y"])]
    else:
        nodes = [helper.make_node("MatMul", ["x", names[0]], ["y"])]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, (*shape[:-1], w.shape[1]))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def differentiated(model: ir.Model, choice: Choice) -> tuple[ir.Model, np.ndarray]:
    """(the model quantized, with an input dy and an output dx; the real numbers that its weight's codes stand for)."""
    quantize(model, {"layer.weight": choice})
    (node,) = [node for node in model.graph if is_quantized(node)]
    weight = blocks_of(node).real(features(node)[0]) if choice.rung.in_blocks else real_weight(node)
    op = GraphBuilder(model.graph).op
    x, y = model.graph.inputs[0], model.graph.outputs[0]
    dy = op.builder.input("dy", ir.DataType.FLOAT, list(dims(y)))
    dx = differentiate(op, list(model.graph), {y: dy}, [x])[x]
    dx.name = "dx"
    model.graph.outputs.append(dx)
    lower_nodes(model.graph, op, LOWERED)
    model.graph.opset_imports.pop(DOMAIN)
    return model, weight


def run(model: ir.Model, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with open_session(model) as session:
        y, dx = session.run(["y", "dx"], {"x": x.astype(np.float32), "dy": dy.astype(np.float32)})
    return np.asarray(y), np.asarray(dx)


@pytest.mark.parametrize("rung", [Rung.ROWS_8, Rung.CHANNELS_8, Rung.DIGITS_8])
def test_products_that_share_an_input_share_its_codes(rung: Rung) -> None:
    """Also where channels are evened out, or apart: what belongs to the input is there once."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 8)).astype(np.float32)
    weights = {f"{name}.weight": rng.standard_normal((8, 3)).astype(np.float32) for name in "qkv"}
    even = np.where(np.arange(8) == 2, 0 if rung is Rung.CHANNELS_8 else 1, 0.5).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], [name[0]]) for name in weights],
        "products",
        [helper.make_tensor_value_info("x", FLOAT, ["rows", 8])],
        [helper.make_tensor_value_info(name[0], FLOAT, ["rows", 3]) for name in weights],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    quantize(model, {name: Choice(rung, even.copy()) for name in weights})
    lower_nodes(model.graph, GraphBuilder(model.graph).op, LOWERED)
    kinds = [node.op_type for node in tidy(model).graph]
    assert kinds.count("QuantizeLinear") == rung.digits and kinds.count("Gather") == (rung is Rung.CHANNELS_8)
    with open_session(model) as session:
        for name, got in zip(weights, session.run([name[0] for name in weights], {"x": x}), strict=True):
            np.testing.assert_allclose(np.asarray(got), x @ weights[name], atol=0.1)


@pytest.mark.parametrize("rung", QUANTIZED)
def test_products_of_the_largest_codes_are_exact(rung: Rung) -> None:
    """Every pair of neighbours would leave 16 bits, if codes of 8 signed bits met unsigned ones of 8."""
    w, x = np.ones((64, 8)), np.ones((6, 64))
    w[:, 4:] = -1
    x[3:] = -1
    dy = np.where(np.arange(8) < 4, 1.0, -1.0) * np.ones((6, 1))
    model, _ = differentiated(product(w, ("rows", 64)), Choice(rung))
    y, dx = run(model, x, dy)
    np.testing.assert_allclose(y, x @ w, rtol=1e-2)
    np.testing.assert_allclose(dx, dy @ w.T, rtol=1e-2)


def test_slower_exact_products_have_the_same_bits(tmp_path: Path) -> None:
    """What is set on processors that add pairs in 16 bits: ONNX Runtime's products of unsigned bytes."""
    rng = np.random.default_rng(0)
    w, x, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 48), (9, 64), (9, 48)))
    model, _ = differentiated(product(w, ("rows", 64)), Choice(Rung.ROWS_8))
    codes = [t for t in model.graph.initializers.values() if t.dtype == ir.DataType.INT8 and ".back" not in str(t.name)]
    assert max(int(np.abs(t.const_value.numpy().astype(int)).max()) for t in codes if t.const_value) == 127
    ir.save(model, tmp_path / "model.onnx")
    results = []
    for exact in ("0", "1"):
        options = ort.SessionOptions()
        keep_exact(options)
        if exact == "1":
            options.add_session_config_entry("session.x64quantprecision", exact)
        session = ort.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
        results.append(session.run(["y", "dx"], {"x": x, "dy": dy}))
    for quick, slow in zip(*results, strict=True):
        np.testing.assert_array_equal(quick, slow)


@pytest.mark.parametrize("rung", QUANTIZED)
@pytest.mark.parametrize("kind", ["matmul", "gemm"])
@pytest.mark.parametrize("even", [False, True])
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_any_product(rung: Rung, kind: str, even: bool, data: st.DataObject) -> None:
    """The output is that of the real numbers behind the codes, up to the rounding of X; so is the gradient."""
    lead = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=1 if kind == "gemm" else 3))
    k, n = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    w, x, dy = (rng.standard_normal(shape) for shape in ((k, n), (*lead, k), (*lead, n)))
    bias = rng.standard_normal(n) if data.draw(st.booleans()) else None
    names: tuple[int | str, ...] = (*(f"axis{i}" for i in range(len(lead))), k)
    t = rng.uniform(0.5, 2, k).astype(np.float32) if even else None
    model, weight = differentiated(product(w, names, kind, bias), Choice(rung, t))
    y, dx = run(model, x, dy)
    assert y.shape == (*lead, n)
    assert dx.shape == x.shape
    span = np.abs(x).max() * np.abs(w).max() * k * (4 if even else 1)
    np.testing.assert_allclose(y, x @ weight + (0 if bias is None else bias), atol=span / 100)
    span = np.abs(dy).max() * np.abs(w).max() * n * (4 if even else 1)
    np.testing.assert_allclose(dx, dy @ weight.T, atol=span / 40)


def test_rows_of_a_cotangent_keep_their_own_scale() -> None:
    """A row a million times smaller than another keeps its direction; one scale for all would make zeros of it."""
    rng = np.random.default_rng(0)
    w, x, dy = rng.standard_normal((32, 24)), rng.standard_normal((4, 32)), rng.standard_normal((4, 24))
    dy *= np.array([[1.0], [1e-6], [1e3], [1e-3]])
    model, weight = differentiated(product(w, ("rows", 32)), Choice())
    _, dx = run(model, x, dy)
    for got, wanted in zip(dx, dy @ weight.T, strict=True):
        assert relative(got, wanted) < 0.03
    single = np.rint(dy / np.abs(dy).max() * 127) * np.abs(dy).max() / 127
    assert relative((single @ weight.T)[1], (dy @ weight.T)[1]) > 0.5


def test_an_output_with_a_large_scale_costs_the_others_no_digits() -> None:
    rng = np.random.default_rng(0)
    w, x, dy = rng.standard_normal((32, 24)), rng.standard_normal((4, 32)), rng.standard_normal((4, 24))
    w[:, 3] *= 100
    dy[:, 3] = 1e-4
    model, weight = differentiated(product(w, ("rows", 32)), Choice())
    _, dx = run(model, x, dy)
    other = np.delete(dy, 3, 1) @ np.delete(weight, 3, 1).T
    assert relative(dx, dy @ weight.T) < 0.7
    assert np.isfinite(dx).all()
    assert relative(dx, other) < 0.7


def test_rows_do_not_depend_on_other_rows() -> None:
    rng = np.random.default_rng(0)
    w, x, dy = rng.standard_normal((32, 24)), rng.standard_normal((4, 32)), rng.standard_normal((4, 24))
    model, _ = differentiated(product(w, ("rows", 32)), Choice(Rung.ROWS_8))
    together, alone = run(model, x, dy), run(model, x[1:2], dy[1:2])
    for many, one in zip(together, alone, strict=True):
        np.testing.assert_array_equal(many[1:2], one)


def test_a_row_of_few_negatives_takes_most_codes_for_positives() -> None:
    rng = np.random.default_rng(0)
    w, x, dy = rng.standard_normal((64, 24)), rng.standard_normal((9, 64)), rng.standard_normal((9, 24))
    x = np.where(x > 0, x, x / 20)
    errors = []
    for middle in (128, 32):
        model, weight = differentiated(product(w, ("rows", 64)), Choice(Rung.ROWS_8, None, middle))
        errors.append(relative(run(model, x, dy)[0], x @ weight))
    assert errors[1] < 0.75 * errors[0]


def test_channels_apart_are_multiplied_in_real_numbers() -> None:
    rng = np.random.default_rng(0)
    w, x, dy = rng.standard_normal((64, 24)), rng.standard_normal((9, 64)), rng.standard_normal((9, 24))
    x[:, [5, 40]] *= 1000
    apart = np.where(np.isin(np.arange(64), [5, 40]), 0, 1).astype(np.float32)
    errors = []
    for choice in (Choice(Rung.ROWS_8), Choice(Rung.CHANNELS_8, apart)):
        model, weight = differentiated(product(w, ("rows", 64), bias=np.ones(24)), choice)
        y, dx = run(model, x, dy)
        errors.append(float(np.abs(y - x @ w - 1).max()))
        assert relative(dx, dy @ w.T) < 0.02
    np.testing.assert_array_equal(weight[[5, 40]], w[[5, 40]].astype(np.float32))
    assert errors[1] < 0.5 < 3 < errors[0]


def test_a_second_digit_holds_what_the_first_leaves_over() -> None:
    rng = np.random.default_rng(0)
    w, x, dy = rng.standard_normal((64, 24)), rng.standard_normal((9, 64)), rng.standard_normal((9, 24))
    x[np.arange(9), rng.integers(0, 64, 9)] *= 200  # in every row another channel
    for middle in (128, 32):
        model, weight = differentiated(product(w, ("rows", 64)), Choice(Rung.DIGITS_8, None, middle))
        assert relative(run(model, x, dy)[0], x @ weight) < 1e-3
    model, weight = differentiated(product(w, ("rows", 64)), Choice(Rung.ROWS_8))
    assert relative(run(model, x, dy)[0], x @ weight) > 1e-2


@pytest.mark.parametrize("always", [True, False])
def test_a_second_digit_must_pay(always: bool) -> None:
    """Not where the large channels are always the same: these are apart."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 64)).astype(np.float32)
    if always:
        x[:, 5] *= 100
    else:
        x[rng.random(x.shape) < 0.03] *= 30
    rungs = (Rung.ROWS_8, Rung.CHANNELS_8, Rung.DIGITS_8)
    (ladder,) = ladders(product(rng.standard_normal((64, 24)), ("rows", 64)), {"x": x}, {}, rungs).values()
    assert ladder[-1].choice.rung is (Rung.CHANNELS_8 if always else Rung.DIGITS_8)
    assert ladder[-1].error < 0.7 * ladder[0].error


@pytest.mark.parametrize("positive", [True, False])
def test_channels_apart_err_no_more_than_rows(positive: bool) -> None:
    """Rows that are nearly all positive keep most codes for that; where none is large, nothing is gained."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (256, 64)).astype(np.float32)
    x = np.where(x > 0, x, x / 20) if positive else np.sign(x)
    rungs = (Rung.ROWS_8, Rung.CHANNELS_8, Rung.DIGITS_8)
    (ladder,) = ladders(product(rng.standard_normal((64, 24)), ("rows", 64)), {"x": x}, {}, rungs).values()
    errors = [candidate.error for candidate in ladder]
    assert errors == sorted(errors, reverse=True)


def two_uses(turned: bool, outputs: int = 64) -> tuple[ir.Model, np.ndarray]:
    """(a·w and b·w, or with w turned the second time; w)."""
    w, other = np.random.default_rng(0).standard_normal((64, outputs)).astype(np.float32), outputs if turned else 64
    sizes = {"a": 64, "b": other, "y": outputs, "z": 64 if turned else outputs}
    values = {name: helper.make_tensor_value_info(name, FLOAT, ["rows", size]) for name, size in sizes.items()}
    nodes = [helper.make_node("MatMul", ["a", "w"], ["y"]), helper.make_node("Gemm", ["b", "w"], ["z"], transB=turned)]
    ends = [values["a"], values["b"]], [values["y"], values["z"]]
    graph = helper.make_graph(nodes, "two", *ends, [numpy_helper.from_array(w, "w")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)), w


def test_a_matrix_of_several_inputs_is_measured_on_all_of_them() -> None:
    """What one way does to each input, and not each way to its own: their large channels are others."""
    rng = np.random.default_rng(0)
    model, w = two_uses(turned=False)
    feeds = {name: rng.standard_normal((256, 64)).astype(np.float32) for name in "ab"}
    feeds["a"][:, :8] *= 200
    feeds["b"][:, 40:48] *= 100
    for candidate in ladders(model, feeds, {}, RUNGS["int8"])["w"]:
        made, _ = two_uses(turned=False)
        quantize(made, {"w": candidate.choice})
        lower_nodes(made.graph, GraphBuilder(free_names(made.graph)).op, LOWERED)
        with open_session(tidy(made)) as session:
            outputs = session.run(["y", "z"], feeds)
        worst = max(relative(np.asarray(y), x @ w) for y, x in zip(outputs, feeds.values(), strict=True))
        assert worst == pytest.approx(candidate.error, rel=0.05, abs=1e-6), candidate.choice.rung


@pytest.mark.parametrize("outputs", [64, 48])
@pytest.mark.parametrize("precision", RUNGS)
def test_a_matrix_that_is_also_turned_stays_real(outputs: int, precision: str) -> None:
    """Its channels are inputs here and outputs there: no codes and scales are those of both."""
    model, _ = two_uses(True, outputs)
    feeds = {"a": np.ones((3, 64), np.float32), "b": np.ones((3, outputs), np.float32)}
    assert ladders(model, feeds, {}, RUNGS[precision]) == {"w": []}


@given(st.integers(0, 99), st.sampled_from([rung for rung in Rung if rung.by_rows]), st.sampled_from([128, 32]))
@settings(max_examples=12, deadline=None)
def test_what_is_measured_is_what_is_computed(seed: int, rung: Rung, middle: int) -> None:
    """The choice goes by errors that are computed without a graph."""
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal((16, 8)), rng.standard_normal((5, 16)).astype(np.float32)
    choice = Choice(rung, None, middle)
    model, weight = differentiated(product(w, ("rows", 16)), choice)
    y, _ = run(model, x, np.zeros((5, 8)))
    assert relative(rounded(x, choice) @ weight, y) < 1e-2 / 50


@pytest.mark.parametrize("quantized", ["zero weight", "zero input"])
def test_zeros_stay_zeros(quantized: str) -> None:
    w, x = np.ones((8, 4)), np.ones((3, 8))
    (w if quantized == "zero weight" else x)[:] = 0
    model, _ = differentiated(product(w, ("rows", 8)), Choice())
    y, dx = run(model, x, np.zeros((3, 4)))
    assert not y.any()
    assert not dx.any()


def test_a_plan_holds_for_weights_with_names_of_a_builder() -> None:
    model = product(np.ones((8, 4)), ("rows", 8))
    weight = model.graph.initializers["layer.weight"]
    weight.name = "const_0"
    quantize(model, {"const_0": Choice(Rung.REAL)})
    assert [node.op_type for node in model.graph] == ["MatMul"]


# --- whole bundles


def outlier(factor: float, undone: float = 0.1, every: int = 16) -> onnx.ModelProto:
    """A perceptron of two layers; every 16th hidden value is `factor` times as large, the weights after it smaller."""
    rng = np.random.default_rng(0)
    weights = {"up.weight": rng.standard_normal((16, 64)), "down.weight": rng.standard_normal((64, 16))}
    weights["up.weight"][:, ::every] *= factor
    weights["down.weight"][::every] /= factor**undone
    nodes = [
        helper.make_node("MatMul", ["x", "up.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "down.weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "outlier",
        [helper.make_tensor_value_info("x", FLOAT, ("batch", 16))],
        [helper.make_tensor_value_info("y", FLOAT, ("batch", 16))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def facts(manifest: Manifest) -> list[tuple]:
    return [(p.id, p.op, p.in_features, p.out_features, p.layer) for p in manifest.points]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory):
    """A transformer in float32 and in int8."""
    folder = tmp_path_factory.mktemp("quantize")
    source = networks.save(networks.transformer(21), folder, "transformer.onnx")
    return to_bundle(source, folder, "real"), to_bundle(source, folder, "int8", quantize="int8"), source


def test_points_and_outputs_stay(both) -> None:
    real, quantized, source = both
    assert facts(quantized.manifest) == facts(real.manifest)
    assert quantized.manifest.outputs == real.manifest.outputs
    for batch, length in ((1, 1), (2, 5), (3, 9)):
        inputs = tokens_of(batch, length)
        wanted = run_onnx(source, inputs)
        for name, y in base_outputs(quantized, inputs).items():
            assert relative(y, wanted[name]) < 0.05


def test_a_base_that_is_blind_to_padding_stays_so(both) -> None:
    """The largest token stands where the mask is 0: one scale for all of an input would round the others by it."""
    _, quantized, _ = both
    assert not {"int8", "int8, weights of 7 bits"} & set(quantized.manifest.source["products"])
    inputs = tokens_of(3, 9)
    others = np.random.default_rng(7).integers(1, networks.VOCABULARY, inputs["input_ids"].shape)
    changed = inputs | {"input_ids": np.where(inputs["attention_mask"] == 1, inputs["input_ids"], others)}
    first, second = (base_outputs(quantized, one) for one in (inputs, changed))
    kept = inputs["attention_mask"] == 1
    for name, y in first.items():
        pair = (x[kept] if x.shape[:2] == kept.shape else x for x in (y, second[name]))
        np.testing.assert_allclose(*pair, rtol=0, atol=1e-5)


def test_gradients_point_as_in_float32(both) -> None:
    real, quantized, _ = both
    inputs = tokens_of(3, 9)
    feeds = train_feeds(real, inputs)
    made = real.forward.run(feeds)
    rng = np.random.default_rng(1)
    feeds |= {f"cotangent.{name}": rng.standard_normal(y.shape).astype(np.float32) for name, y in made.items()}
    ours, theirs = (b.graph("train-cotangent.onnx").run(feeds) for b in (quantized, real))
    for name, wanted in theirs.items():
        if name.startswith("grad."):
            a, b = ours[name].ravel().astype(np.float64), wanted.ravel().astype(np.float64)
            assert a @ b > 0.97 * np.linalg.norm(a) * np.linalg.norm(b), name


def test_the_manifest_says_what_was_done(both) -> None:
    real, quantized, _ = both
    assert quantized.manifest.source["precision"] == "int8"
    assert sum(quantized.manifest.source["products"].values()) == len(quantized.manifest.points)
    assert quantized.manifest.base_digest != real.manifest.base_digest
    assert "products" not in real.manifest.source


def test_check_holds_the_gradients_against_float32(both) -> None:
    _, quantized, _ = both
    verdict = check(quantized)
    assert {q.id for q in verdict.quantized} == {p.id for p in quantized.manifest.trainable}
    assert all(q.passed and q.cosine >= 0.99 for q in verdict.quantized)
    assert verdict.parity < 0.1


def test_what_the_gradients_reach_is_shown(both, capsys) -> None:
    """The mean too, by which a language model's points are judged."""
    path = str(both[1].path)
    assert main(["check", path]) == 0
    cosines = [q["cosine"] for q in (Bundle.open(both[1].path).manifest.verification or {})["quantized"]]
    said = f"{np.mean(cosines):.4f} on the mean of {len(cosines)} points, least {min(cosines):.4f}"
    assert said in capsys.readouterr().out
    assert main(["info", path]) == 0
    assert said in capsys.readouterr().out


def test_outliers_take_channels_of_their_own_and_many_weights_of_8_bits(tmp_path) -> None:
    plain = to_bundle(outlier(1.0), tmp_path, "plain", quantize="int8").manifest.source
    spread = to_bundle(outlier(1e5), tmp_path, "spread", quantize="int8").manifest.source
    many = to_bundle(outlier(1e5, every=4), tmp_path, "many", quantize="int8").manifest.source
    assert not {Rung.CHANNELS_8, Rung.BLOCKS_8, Rung.WEIGHTS_8, Rung.REAL} & set(plain["products"])
    assert Rung.CHANNELS_8 in spread["products"]
    assert not {Rung.BLOCKS_8, Rung.WEIGHTS_8, Rung.REAL} & set(spread["products"])
    assert {Rung.BLOCKS_8, Rung.WEIGHTS_8} & set(many["products"])
    assert many["float32"] == []


def test_what_no_codes_hold_stays_real_and_is_reported(tmp_path) -> None:
    """Small weights that meet large inputs share a block with large ones that meet small inputs."""
    source = to_bundle(outlier(1e5, 1.0), tmp_path, "lost", quantize="int4").manifest.source
    assert "down" in source["float32"]
    assert source["products"]["float32"] == len(source["float32"])


def test_a_base_without_matrices_stays_float32(tmp_path: Path) -> None:
    """Convolutions have no integers: there is nothing to quantize, and the bundle is the float32 one."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 1))
    source = module_source(module, {"input": torch.rand(2, 3, 12, 12)}, "convolutions")
    said: list[str] = []
    made: list[Manifest] = []
    for kind in (None, "int8"):
        options = ConvertOptions(task="feature-extraction", quantize=kind)
        made.append(convert(source, tmp_path / f"{kind}.edgelora", options, said.append))
    assert made[0] == made[1] and made[1].source["precision"] == "float32"
    assert any(line.startswith("nothing to quantize") for line in said)
