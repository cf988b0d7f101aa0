"""Training graphs that compute parts twice: the same gradients to the bit, in less memory, on real and small models."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.errors import EdgeLoraError
from edgelora.graph_checks import check_recomputed
from edgelora.manifest import Recomputed, TrainingGraph
from edgelora.probes import loss_feeds, whole_adapter
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.passes.segments import choose_cuts, narrow_places
from edgelora_tools.runner import session_on
from tests import families
from tests.convert import networks
from tests.convert.bundles import to_bundle
from tests.convert.networks import Net

LARGE: dict[str, Any] = {"batch_size": 32768, "length": 64}  # so that what small models save is worth a graph
WIDTH, DEPTH = 64, 12
FUSED = 5e-6  # ONNX Runtime may put the scale of attention into one product or another


def residual(net: Net, x: str) -> str:
    for layer in range(DEPTH):
        inner = net("Tanh", net.linear(x, f"layer{layer}.up", WIDTH, WIDTH))
        x = net("Add", x, net.linear(inner, f"layer{layer}.down", WIDTH, WIDTH))
    return x


def decoder(folder: Path) -> Bundle:
    options = ConvertOptions(target_modules="all-linear", output="last_hidden_state", **LARGE)
    convert(families.source("llama", "torchscript"), folder / "llama.edgelora", options)
    return Bundle.open(folder / "llama.edgelora")


def perceptron(folder: Path) -> Bundle:
    model = networks.perceptron(build=residual, width=WIDTH)
    return to_bundle(model, folder, "perceptron", task="regression", pooling="pooler", **LARGE)


def encoder(folder: Path) -> Bundle:
    model = networks.transformer(17, layers=3, pooler=False)
    return to_bundle(model, folder, "encoder", task="sequence-classification", **LARGE)


def pooled(folder: Path) -> Bundle:
    """Convolutions with pools behind some of them, as far apart as makes all parts hold about the same."""
    net, x = Net(17), "x"
    for part, count in enumerate((1, 4, 4)):
        for at in range(count):
            x = convolution(net, x, f"{part}.{at}", 3 if x == "x" else 16)
        x = net("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    sizes = ("batch", 3, 32, 32), ("batch", 16, 4, 4)
    model = net.model([("x", networks.FLOAT, sizes[0])], [(net.rename(x, "y"), networks.FLOAT, sizes[1])])
    return to_bundle(model, folder, "pooled", target_modules=("0.0", "1.1", "2.1"), batch_size=1024)


def convolution(net: Net, x: str, name: str, channels: int) -> str:
    weight = net.weight(f"{name}.weight", 16, channels, 3, 3, scale=0.1)
    return net("Relu", net("Conv", x, weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1], name=f"/{name}/Conv"))


def parted(folder: Path) -> Bundle:
    """Of what one Split makes a part is computed again, and the other, kept, has a maximum in the segment behind."""
    net = Net(17)

    def tanh(x: str, name: str, channels: int, out: int) -> str:
        weight = net.weight(f"{name}.weight", out, channels, 3, 3, scale=0.2)
        return net("Tanh", net("Conv", x, weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1], name=f"/{name}/Conv"))

    x = tanh("x", "stem", 3, 8)
    for at in range(4):
        one, rest = net("Split", x, net.const([1, 7], np.int64), outputs=2, axis=1)
        narrow = tanh(net("Mul", rest, tanh(rest, f"{at}.gate", 7, 7)), f"{at}.narrow", 7, 1)
        largest = net("Max", one, tanh(narrow, f"{at}.other", 1, 1))
        x = tanh(net("Add", largest, tanh(narrow, f"{at}.wide", 1, 8)), f"{at}.out", 8, 8)
    sizes = ("batch", 3, 16, 16), ("batch", 8, 16, 16)
    model = net.model([("x", networks.FLOAT, sizes[0])], [(net.rename(x, "y"), networks.FLOAT, sizes[1])])
    return to_bundle(model, folder, "parted", target_modules=("stem", "2.wide"), batch_size=1024)


BUILDERS = {"perceptron": perceptron, "encoder": encoder, "decoder": decoder, "pooled": pooled, "parted": parted}


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    return functools.cache(lambda model: BUILDERS[model](tmp_path_factory.mktemp(model)))


@pytest.fixture(scope="module")
def minilm() -> Bundle:
    from benchmarks.clinc import RECIPE, ClincOptions, cached_bundle
    from edgelora_tools.recipes import fetch, load_recipe

    try:
        model = fetch(load_recipe(RECIPE))
    except EdgeLoraError as error:
        pytest.skip(str(error))
    return Bundle.open(cached_bundle(model, ClincOptions().targets, lambda _: None))


def pairs(bundle: Bundle) -> list[tuple[TrainingGraph, Recomputed]]:
    return [(record, record.recomputed) for record in bundle.manifest.training if record.recomputed is not None]


def feeds_of(bundle: Bundle, record: TrainingGraph, rows: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    inputs: dict[str, np.ndarray] = {}
    for spec in bundle.manifest.inputs:
        shape = [rows, *(length if isinstance(d, str) else d for d in spec.shape[1:])]
        if spec.dtype == "float32":
            inputs[spec.name] = rng.standard_normal(shape).astype(np.float32)
        elif spec.name == "attention_mask":
            inputs[spec.name] = (np.arange(length) < np.linspace(length, 1, rows).round()[:, None]).astype(np.int64)
        else:
            inputs[spec.name] = rng.integers(0, 2, shape)
    values = whole_adapter(bundle, inputs, rng)
    outputs = bundle.forward.run({**inputs, **values})
    feeds = {**inputs, **values, **loss_feeds(bundle.manifest, record, inputs, outputs, rng)}
    masks = [spec.name for spec in record.inputs if spec.dtype == "uint8"]
    return feeds | {name: rng.integers(0, 2, feeds[name].shape).astype(np.uint8) for name in masks}


def assert_same(bundle: Bundle, record: TrainingGraph, again: Recomputed, sizes: list[tuple[int, int]]) -> None:
    plain, twice = (session_on(bundle.path / file, optimize=False) for file in (record.file, again.file))
    names = [y.name for y in plain.get_outputs()]
    assert [y.name for y in twice.get_outputs()] == names
    for rows, length in sizes:
        feeds = feeds_of(bundle, record, rows, length)
        taken = {x.name: feeds[x.name] for x in plain.get_inputs()}
        for name, a, b in zip(names, plain.run(names, taken), twice.run(names, taken), strict=True):
            np.testing.assert_array_equal(b, a, err_msg=f"{again.file} {name} {rows} × {length}")
            assert rows == 1 or np.any(np.asarray(a)), name
        wanted, got = bundle.graph(record.file).run(feeds), bundle.graph(again.file).run(feeds)
        for name in names:
            assert np.linalg.norm(got[name] - wanted[name]) <= FUSED * np.linalg.norm(wanted[name]), name


@pytest.mark.parametrize("model", list(BUILDERS))
def test_every_gradient_is_the_plain_graphs_to_the_bit(bundle_of: Callable[[str], Bundle], model: str):
    bundle = bundle_of(model)
    found = pairs(bundle)
    assert {record.dropout for record, _ in found} == {False, True}
    assert len(found) == len(bundle.manifest.training)
    for record, again in found:
        assert_same(bundle, record, again, [(1, 1), (3, 5), (4, 16)])
        assert 1 < again.work < 1.6


def test_a_maximum_is_compared_with_what_it_is_of(bundle_of: Callable[[str], Bundle]):
    """Not with what is rounded otherwise, the second time: no element would be the maximum, and gradients NaN."""
    for _, again in pairs(bundle_of("pooled")):
        graph = onnx.load(bundle_of("pooled").path / again.file, load_external_data=False).graph
        made = {y: node for node in graph.node for y in node.output}
        compared = [node for node in graph.node if node.op_type == "Equal"]
        assert len(compared) > 1
        for node in compared:
            x, spread = node.input
            pool = made[made[spread].input[0]]
            assert pool.op_type == "MaxPool" and pool.input[0] == x, again.file


@pytest.mark.parametrize("model", ["perceptron", "encoder"])
def test_onnxruntime_holds_less(bundle_of: Callable[[str], Bundle], model: str):
    tables = bundle_of(model).manifest.memory
    sizes = {"batch": 64, "sequence": 64}
    for record, again in pairs(bundle_of(model)):
        assert tables[again.file].peak(sizes) < 0.7 * tables[record.file].peak(sizes)


def test_real_weights_give_the_same_gradients_in_half_the_memory(minilm: Bundle):
    record = minilm.training("cross-entropy", dropout=False)
    assert record.recomputed is not None
    assert_same(minilm, record, record.recomputed, [(4, 33)])
    tables, sizes = minilm.manifest.memory, {"batch": 8, "sequence": 128}
    assert tables[record.recomputed.file].peak(sizes) < 0.5 * tables[record.file].peak(sizes)
    assert (minilm.path / record.recomputed.file).stat().st_size < 500_000


def test_check_compares_both(bundle_of: Callable[[str], Bundle]):
    bundle = bundle_of("perceptron")
    verdict = check(bundle)
    assert verdict.passed
    assert {again.file for _, again in pairs(bundle)} <= {graph.file for graph in verdict.graphs}
    dropped, again = next(pair for pair in pairs(bundle) if pair[0].dropout)
    inputs = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
    assert check_recomputed(bundle, dropped, again.file, inputs, np.random.default_rng(0)).passed
    blind = replace(dropped, file=bundle.training(dropped.loss, dropout=False).file)
    assert not check_recomputed(bundle, blind, again.file, inputs, np.random.default_rng(0)).passed


def test_what_saves_little_is_not_written(task_bundle: Any):
    manifest = task_bundle("sequence-classification").manifest
    assert not any(record.recomputed for record in manifest.training)
    assert not any("recomputed" in file for file in manifest.files)


def test_weights_are_stored_once(bundle_of: Callable[[str], Bundle]):
    bundle = bundle_of("perceptron")
    record, again = pairs(bundle)[0]
    plain, twice = (ir.load(bundle.path / file) for file in (record.file, again.file))
    places = [
        {
            (t.offset, t.length)
            for v in m.graph.initializers.values()
            if isinstance(t := v.const_value, ir.ExternalTensor)
        }
        for m in (plain, twice)
    ]
    assert places[0] == places[1] != set()


@given(st.data())
def test_cuts_hold_the_least_possible(data: st.DataObject):
    count = data.draw(st.integers(2, 12))
    crossing = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    steps = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    saved = list(itertools.accumulate(steps))
    places = narrow_places(crossing)

    def held(cuts: tuple[int, ...]) -> int:
        ends = [0, *(saved[cut] for cut in cuts), saved[-1]]
        return sum(crossing[cut] for cut in cuts) + max(b - a for a, b in itertools.pairwise(ends))

    every = [c for n in range(len(places) + 1) for c in itertools.combinations(places, n)]
    least = min(map(held, every))
    found = choose_cuts(crossing, saved)
    if least > 0.8 * saved[-1]:
        assert found.at == ()
    else:
        assert found.at in every
        assert held(found.at) <= found.held <= 1.05 * least


@pytest.mark.parametrize("layers", [12, 40, 120])
def test_a_deep_model_is_cut_between_all_of_its_layers(layers):
    """However many places there are that are equally narrow, the cuts are spread over the whole depth."""
    crossing = [9, 1, 7, 1, 8, 1] * layers
    saved = list(itertools.accumulate([12, 0, 6, 0, 6, 0] * layers))
    found = choose_cuts(crossing, saved)
    ends = [0, *(saved[cut] for cut in found.at), saved[-1]]
    held = len(found.at) + max(b - a for a, b in itertools.pairwise(ends))
    assert held <= 1.15 * min(n + 24 * -(-layers // (n + 1)) for n in range(layers))
