"""Weights of 4 and 8 bits in blocks: exact gradients, one matrix real at a time, one copy of the codes, near enough."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora_tools.composites.block_product import Blocks
from edgelora_tools.passes.quantize import Choice, Rung
from edgelora_tools.rounding import BLOCK, round_blocks, round_for
from tests.convert import networks
from tests.convert.bundles import base_outputs, relative, run_onnx, to_bundle, train_feeds
from tests.convert.networks import FLOAT, tokens_of
from tests.convert.test_quantize import differentiated, product, run

BITS = {Rung.BLOCKS_4: 4, Rung.BLOCKS_8: 8, Rung.WEIGHTS_8: 8}


def draw(inputs: int, outputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((inputs, outputs)).astype(np.float32)


# --- rounding


@pytest.mark.parametrize("bits", [4, 8])
@given(inputs=st.integers(1, 80), outputs=st.integers(1, 5), seed=st.integers(0, 99), shift=st.floats(-3, 3))
@settings(max_examples=20)
def test_no_weight_is_further_from_its_code_than_its_block_allows(bits, inputs, outputs, seed, shift) -> None:
    """Half a step, or what shrinking clips; zeros stay zeros."""
    w = draw(inputs, outputs, seed) + np.float32(shift)
    w[:, 0] = 0
    made = round_blocks(w, bits)
    assert not made.real(inputs)[:, 0].any()
    steps = np.repeat(made.scale, BLOCK, 1)[:, :inputs].T
    span = np.maximum(np.abs(w).max(), 1e-9)
    clipped = 0.3 * span if bits == 4 else 0
    assert (np.abs(made.real(inputs) - w) <= steps * 1.01 + clipped).all()


def test_shrinking_blocks_lowers_the_error() -> None:
    w = draw(256, 64)
    blocked = w.T.reshape(64, -1, BLOCK)
    low, high = np.minimum(blocked.min(-1, keepdims=True), 0), np.maximum(blocked.max(-1, keepdims=True), 0)
    step = (high - low) / 15
    plain = (np.rint(blocked / step) * step).reshape(64, -1).T
    assert relative(round_blocks(w, 4).real(256), w) < 0.98 * relative(plain, w)


def test_errors_are_made_up_for_where_inputs_go_together() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 20)) @ rng.standard_normal((20, 100))).astype(np.float32)
    w = draw(100, 24)
    near, made = round_blocks(w, 4), round_for(w, x, 4)
    assert relative(x @ made.real(100), x @ w) < 0.5 * relative(x @ near.real(100), x @ w)
    assert made.scale.shape == near.scale.shape
    assert made.codes.max() <= 15


@given(outputs=st.integers(1, 4), inputs=st.integers(1, 100), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_packing_keeps_every_code(outputs, inputs, seed) -> None:
    from edgelora_tools.composites.block_product import _unpacked

    made: Blocks = round_blocks(draw(inputs, outputs, seed), 4)
    codes, scale, zero = made.packed()
    assert codes.shape == (outputs, scale.shape[1], BLOCK // 2)
    np.testing.assert_array_equal(_unpacked(codes, 4).reshape(outputs, -1), made.codes)
    np.testing.assert_array_equal(_unpacked(zero, 4)[:, : scale.shape[1]], made.zero)


# --- the product


@pytest.mark.parametrize("rung", BITS)
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 7), (32, 8), (70, 5), (96, 33)])
def test_gradients_are_those_of_the_decoded_matrix(rung: Rung, inputs: int, outputs: int) -> None:
    """In float64: <dX, V> is the slope of <dY, X·Ŵ> along V, and dX the product of dY and the same codes."""
    w, x, dy, v = draw(inputs, outputs), draw(6, inputs, 1), draw(6, outputs, 2), draw(6, inputs, 3)
    model, weight = differentiated(product(w, ("rows", inputs)), Choice(rung))
    y, dx = run(model, x, dy)
    exact = weight.astype(np.float64)
    np.testing.assert_allclose(dx, dy @ exact.T, rtol=1e-4, atol=1e-4)
    slope = ((x + 1e-3 * v) @ exact * dy).sum() - ((x - 1e-3 * v) @ exact * dy).sum()
    assert (dx * v.astype(np.float64)).sum() == pytest.approx(slope / 2e-3, rel=1e-4, abs=1e-3)
    assert relative(y, x @ exact) < (1e-5 if rung is Rung.WEIGHTS_8 else 0.02)


@pytest.mark.parametrize("rung", BITS)
def test_rows_do_not_depend_on_other_rows(rung: Rung) -> None:
    x, dy = draw(4, 64, 1), draw(4, 24, 2)
    model, _ = differentiated(product(draw(64, 24), ("rows", 64)), Choice(rung))
    together, alone = run(model, x, dy), run(model, x[1:2], dy[1:2])
    for many, one in zip(together, alone, strict=True):
        np.testing.assert_allclose(many[1:2], one, rtol=2e-2, atol=2e-2)


# --- whole bundles


def chain(products: int, width: int) -> onnx.ModelProto:
    """Products and Tanh in turn; the matrices are far larger than a row of what they multiply."""
    rng = np.random.default_rng(0)
    weights = {f"layer.{i}.weight": rng.standard_normal((width, width)) / width**0.5 for i in range(products)}
    nodes, x = [], "x"
    for i, name in enumerate(weights):
        nodes += [helper.make_node("MatMul", [x, name], [f"p{i}"]), helper.make_node("Tanh", [f"p{i}"], [f"h{i}"])]
        x = f"h{i}"
    values = [helper.make_tensor_value_info(name, FLOAT, ("batch", width)) for name in ("x", x)]
    tensors = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="module")
def chains(tmp_path_factory) -> dict[str | None, Bundle]:
    folder = tmp_path_factory.mktemp("chains")
    return {
        quantize: to_bundle(chain(6, 256), folder, str(quantize), quantize=quantize, target_modules=("layer.0",))
        for quantize in (None, "int8", "int4")
    }


def test_the_codes_are_stored_once(chains) -> None:
    real, integer, small = (chains[q].manifest.files["weights.bin"].size for q in (None, "int8", "int4"))
    weights = 6 * 256 * 256
    assert real >= 4 * weights
    assert integer >= 2 * weights - 256 * 256  # nothing goes back through the first
    assert small < 1.25 * weights
    inference, training = (places(chains["int4"], file) for file in ("forward.onnx", "train-cotangent.onnx"))
    codes = [name for name in inference if name.endswith(".codes")]
    assert len(codes) == 6
    assert all(inference[name] == training[f"{name}.matrix"] for name in codes)


def places(bundle: Bundle, file: str) -> dict[str, str]:
    """Where the tensors of a graph lie in weights.bin."""
    model = onnx.load(bundle.path / file, load_external_data=False)
    entries = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
    return {name: entry["offset"] for name, entry in entries.items() if "offset" in entry}


def test_one_matrix_at_a_time_is_real(chains) -> None:
    """The results of a run of one row, in all: the matrices of five products would be 1.3 MB."""
    peaks = chains["int4"].manifest.memory["train-cotangent.onnx"].peaks
    held = max(sum(term.bytes for term in peak) for peak in peaks)
    assert 256 * 256 * 4 <= held < 2.5 * 256 * 256 * 4


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory):
    """A transformer in float32 and in int4."""
    folder = tmp_path_factory.mktemp("blocks")
    source = networks.save(networks.transformer(21), folder, "transformer.onnx")
    return to_bundle(source, folder, "real"), to_bundle(source, folder, "int4", quantize="int4"), source


def test_points_and_outputs_stay(both) -> None:
    real, small, source = both
    assert small.manifest.points == real.manifest.points
    assert small.manifest.source["precision"] == "int4"
    for batch, length in ((1, 1), (2, 5), (3, 9)):
        inputs = tokens_of(batch, length)
        wanted = run_onnx(source, inputs)
        for name, y in base_outputs(small, inputs).items():
            assert relative(y, wanted[name]) < 0.1


def test_gradients_point_as_in_float32(both) -> None:
    real, small, _ = both
    feeds = train_feeds(real, tokens_of(3, 9))
    made, rng = real.forward.run(feeds), np.random.default_rng(1)
    feeds |= {f"cotangent.{name}": rng.standard_normal(y.shape).astype(np.float32) for name, y in made.items()}
    ours, theirs = (b.graph("train-cotangent.onnx").run(feeds) for b in (small, real))
    for name, wanted in theirs.items():
        if name.startswith("grad."):
            a, b = ours[name].ravel().astype(np.float64), wanted.ravel().astype(np.float64)
            assert a @ b > 0.97 * np.linalg.norm(a) * np.linalg.norm(b), name


def test_the_float32_gradients_decide(both, monkeypatch) -> None:
    """Differences of rounded outputs are shown; how coarse they are is no verdict."""
    _, small, _ = both
    monkeypatch.setattr("edgelora.gradient_checks.ROUNDED_TOLERANCE", 1e-6)
    verdict = check(small)
    assert {q.id for q in verdict.quantized} == {p.id for p in small.manifest.trainable}
    assert all(q.passed and q.cosine >= 0.99 for q in verdict.quantized)
    assert all(p.passed for p in verdict.points)
    assert any(p.error > 1e-6 for p in verdict.points)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5, 2.0, np.nan])
@pytest.mark.parametrize("side", ["input_a", "input_b"])
def test_a_wrong_gradient_is_found(both, factor, side, monkeypatch) -> None:
    from edgelora.quantization import check_quantization

    _, small, _ = both
    point = next(p for p in small.manifest.points if p.id.endswith("up"))
    graph = small.graph("train-cotangent.onnx")
    answered = type(graph).run
    name = f"grad.{getattr(point, side)}"

    def wrong(self, feeds, outputs=None):
        made = answered(self, feeds, outputs)
        return made | {name: made[name] * np.float32(factor)}

    monkeypatch.setattr(type(graph), "run", wrong)
    verdicts = {q.id: q.passed for q in check_quantization(small)}
    assert not verdicts.pop(point.id)
    assert all(verdicts.values())
