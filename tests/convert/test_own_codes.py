"""Matrices that were made of codes of 4 bits: their codes are found, and nothing is rounded a second time."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.bundle import Bundle
from edgelora.quantization import check_quantization
from edgelora_tools import damages
from edgelora_tools.own_codes import own_codes
from edgelora_tools.passes.quantize import Choice, Rung
from edgelora_tools.rounding import BLOCK, round_blocks
from tests.convert import networks
from tests.convert.bundles import base_outputs, relative, to_bundle, train_feeds
from tests.convert.test_blocks import chain, draw, places
from tests.convert.test_quantize import differentiated, product, run


def coded(inputs: int, outputs: int, seed: int, minimum: bool = True, large: bool = True) -> np.ndarray:
    """W `[in, out]` as GGUF's Q4_1 stands for it (d·q + m), or its Q4_0 (d·(q − 8)); d and m have 16 bits."""
    rng = np.random.default_rng(seed)
    shape = (outputs, inputs // BLOCK, 1)
    d = (0.01 + rng.random(shape)).astype(np.float16).astype(np.float32)
    m = (-8 * d + rng.standard_normal(shape) * d) if minimum else -8 * d
    q = rng.integers(0, 16 if large else 2, (outputs, inputs // BLOCK, BLOCK)).astype(np.float32)
    m = m.astype(np.float16).astype(np.float32) if minimum else m
    return (q * d + m).reshape(outputs, inputs).T


@given(
    blocks=st.integers(1, 4),
    outputs=st.integers(1, 40),
    seed=st.integers(0, 99),
    minimum=st.booleans(),
    few=st.booleans(),
)
@settings(max_examples=40)
def test_codes_are_found_and_stand_for_the_very_numbers(blocks, outputs, seed, minimum, few) -> None:
    w = coded(blocks * BLOCK, outputs, seed, minimum, not few)
    made = own_codes(w[:, np.random.default_rng(seed).permutation(outputs)])
    assert made is not None
    assert made.codes.max() <= 15
    assert (made.offset is None) == (not minimum) or few
    order = np.random.default_rng(seed).permutation(outputs)
    np.testing.assert_allclose(made.real(len(w)), w[:, order], rtol=0, atol=2e-7 * np.abs(w).max())


def test_blocks_of_one_number_are_codes() -> None:
    w = coded(96, 8, 0)
    w[:32], w[32:64, 3] = 0, -0.7
    made = own_codes(w)
    assert made is not None
    np.testing.assert_allclose(made.real(96), w, atol=1e-6)


KINDS = ("zeros", "constant", "pruned", "least", "largest", "binary", "outliers", "far", "infinite")


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_made_of_codes_and_looks_so_is_stood_for_as_well(kind: str) -> None:
    rng, shape = np.random.default_rng(0), (64, 8)
    signs = np.sign(rng.standard_normal(shape))
    w = {
        "zeros": np.zeros(shape),
        "constant": np.full(shape, 0.3),
        "pruned": np.where(np.arange(64)[:, None] % 32 == 5, rng.standard_normal(shape), 0),
        "least": rng.integers(0, 4, shape) * 1.4e-45,  # steps between them may be no number
        "largest": signs * 3e38,
        "binary": signs,
        "outliers": np.where(np.arange(64)[:, None] % 32 == 0, 1, 1e-8 * rng.standard_normal(shape)),
        "far": 100 + 1e-5 * rng.standard_normal(shape),
        "infinite": np.where(np.arange(64)[:, None] == 0, np.inf, 0),
    }[kind].astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = own_codes(w)
    assert (made is None) == (kind in ("largest", "infinite"))
    if made is not None:
        largest = np.abs(w).T.reshape(-1, BLOCK).max(1)
        errors = np.abs(made.real(len(w)) - w).T.reshape(-1, BLOCK).max(1)
        assert (errors <= 5e-7 * largest).all()


@pytest.mark.parametrize("kind", [np.float32, np.float16, "bfloat16", "8 bits", "one number"])
def test_other_numbers_are_none(kind) -> None:
    w = draw(256, 24)
    if kind == "one number":
        w = coded(256, 24, 0)
        w[-1, -1] *= 1.001
    elif kind == "8 bits":
        w = round_blocks(w, 8).real(256)
    elif kind == "bfloat16":
        w = (w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    else:
        w = w.astype(kind).astype(np.float32)
    assert own_codes(w) is None
    assert own_codes(w[:40]) is None


@pytest.mark.parametrize("rung", [Rung.OWN_BLOCKS_4, Rung.OWN_WEIGHTS_4])
@pytest.mark.parametrize("lead", [(6,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_the_numbers(rung: Rung, lead: tuple[int, ...], bias: bool) -> None:
    """The gradient to float32's rounding; the output too, unless blocks of X may become bytes."""
    w, rng = coded(96, 33, 1), np.random.default_rng(2)
    x, dy = rng.standard_normal((*lead, 96)).astype(np.float32), rng.standard_normal((*lead, 33)).astype(np.float32)
    b = rng.standard_normal(33) if bias else None
    names = (*(f"axis{i}" for i in range(len(lead))), 96)
    model, weight = differentiated(product(w, names, "matmul", b), Choice(rung, blocks=own_codes(w)))
    np.testing.assert_allclose(weight, w, atol=1e-6)
    y, dx = run(model, x, dy)
    assert relative(dx, dy.astype(np.float64) @ w.T.astype(np.float64)) < 1e-6
    exact = x.astype(np.float64) @ w.astype(np.float64) + (0 if b is None else b)
    assert relative(y, exact) < (1e-6 if rung is Rung.OWN_WEIGHTS_4 else 0.01)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """A network whose matrices were made of codes, in float32 and in int4."""
    folder = tmp_path_factory.mktemp("own")
    source = of_codes(4)
    return to_bundle(source, folder, "real"), to_bundle(source, folder, "int4", quantize="int4")


def of_codes(many: int) -> onnx.ModelProto:
    """Four products, the first without an offset; so many of the matrices were made of codes."""
    source = chain(4, 128)
    for number, tensor in enumerate(source.graph.initializer[:many]):
        w = coded(128, 128, number, minimum=number > 0) / 64
        tensor.raw_data = w.astype(np.float32).tobytes()
    return source


def test_a_base_of_codes_is_its_float32_twin(both) -> None:
    """Gradients to float32's rounding; inference to that of its blocks of inputs."""
    real, small = both
    assert small.manifest.source["products"] == {"own int4 codes by blocks": 4}
    assert small.manifest.files["weights.bin"].size < 0.35 * real.manifest.files["weights.bin"].size
    verdicts = check_quantization(small)
    assert len(verdicts) == 4
    assert all(v.passed and v.cosine > 1 - 1e-6 for v in verdicts)
    x = {"x": draw(5, 128)}
    feeds = train_feeds(real, x) | {"cotangent.h3": draw(5, 128, 1)}
    ours, theirs = (b.graph("train-cotangent.onnx").run(feeds) for b in (small, real))
    for name, wanted in theirs.items():
        assert relative(ours[name], wanted) < 1e-5, name
    y, wanted = base_outputs(small, x), base_outputs(real, x)
    assert all(relative(y[name], wanted[name]) < 0.02 for name in wanted)


def test_the_bytes_of_own_codes_are_stored_once(both) -> None:
    inference, training = (places(both[1], file) for file in ("forward.onnx", "train-cotangent.onnx"))
    codes = [name for name in inference if name.endswith(".codes")]
    assert len(codes) == 4
    for name in codes:
        assert inference[name] == training[f"{name}.matrix"]
    moved = [name for name in inference if name.endswith(".offset")]
    assert len(moved) == 3
    assert {inference[name] for name in moved} == {training[n] for n in training if n.endswith(".offset")}


def test_what_is_rounded_goes_by_its_own_search(tmp_path) -> None:
    """One matrix of the four was not made of codes."""
    counts = to_bundle(of_codes(3), tmp_path, quantize="int4").manifest.source["products"]
    assert counts.pop("own int4 codes by blocks") == 3
    assert list(counts.values()) == [1]


# --- what products are rounded together


@given(layers=st.integers(0, 60), kinds=st.integers(1, 9))
def test_groups_are_few_and_of_a_kind(layers: int, kinds: int) -> None:
    names = [f"layers.{layer}.{chr(97 + kind)}.weight" for layer in range(layers) for kind in range(kinds)]
    made = damages.groups(names)
    assert sorted(name for group in made for name in group) == sorted(names)
    assert len(made) == min(damages.TRIED, len(names))
    sizes = [len(group) for group in made]
    assert not sizes or max(sizes) - min(sizes) <= 1
    mixed = sum(len({name.split(".")[2] for name in group}) > 1 for group in made)
    assert mixed <= kinds - 1


def test_groups_choose_as_products_alone_do(tmp_path, monkeypatch) -> None:
    """A third of the runs; as many products of 4 bits but one, and gradients as near."""
    source = networks.save(networks.transformer(21), tmp_path, "transformer.onnx")
    counts = []
    for tried in (99, 4):
        monkeypatch.setattr(damages, "TRIED", tried)
        made = to_bundle(source, tmp_path, str(tried), quantize="int4")
        assert all(v.passed for v in check_quantization(made))
        counts.append(made.manifest.source["products"].get("int4 by blocks", 0))
    assert counts[0] > 0
    assert abs(counts[0] - counts[1]) <= 1
