"""The check where outputs are far apart: beside and behind a sigmoid that is shut, of a quiet one beside a loud one."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.gradient_checks import check_point
from edgelora.parity import parity_samples
from edgelora.probes import gentle_factor, random_pair
from tests.convert.bundles import to_bundle
from tests.convert.networks import FLOAT, Net
from tests.convert.test_check import edit, insert_after

WIDTH = 32
POINTS = ("first", "second", "places", "flag", "near")


@pytest.fixture(scope="module")
def pose(tmp_path_factory) -> Bundle:
    """As networks of poses are: places in pixels, a flag that says 1e-7, and places in metres."""
    net = Net(18)
    x = net("Tanh", net.linear("x", "first", WIDTH, WIDTH))
    x = net("Relu", net.linear(x, "second", WIDTH, WIDTH))
    places, flag, near = (net.linear(x, name, WIDTH, n) for name, n in (("places", 60), ("flag", 1), ("near", 40)))
    net.weights["places.weight"] *= 100
    net.weights["places.bias"] += np.float32(150)
    net.weights["flag.weight"] *= 4
    net.weights["flag.bias"] -= np.float32(16)
    net.weights["near.weight"] *= np.float32(0.3)
    outputs = (places, "places_y", 60), (net("Sigmoid", flag), "flag_y", 1), (near, "near_y", 40)
    for y, name, _ in outputs:
        net.output(y, name)
    made = [(name, FLOAT, ["batch", n]) for _, name, n in outputs]
    return to_bundle(net.model([("x", FLOAT, ["batch", WIDTH])], made), tmp_path_factory.mktemp("pose"))


def inputs_of(bundle: Bundle) -> dict[str, np.ndarray]:
    samples = parity_samples(bundle)
    return samples[min(1, len(samples) - 1)][0]


def passes(bundle: Bundle, name: str, seed: int) -> bool:
    point = next(p for p in bundle.manifest.points if p.id == name)
    return check_point(bundle, point, inputs_of(bundle), np.random.default_rng(seed)).passed


def altered(bundle: Bundle, folder, change) -> Bundle:
    """The same bundle with another cotangent graph."""
    copy = folder / "altered.edgelora"
    copy.mkdir()
    for file in bundle.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    edit(copy, "train-cotangent.onnx", change)
    return Bundle.open(copy)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", POINTS)
def test_right_gradients_pass(name, seed, pose):
    assert passes(pose, name, seed)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.9, 1.1])
@pytest.mark.parametrize("tensor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("name", POINTS)
def test_wrong_gradients_fail(name, tensor, factor, pose, tmp_path):
    wrong = altered(pose, tmp_path, insert_after(f"grad.{name}.{tensor}", "Mul", factor))
    assert [p.id for p in check(wrong).points if not p.passed] == [name]
    assert not any(passes(wrong, name, seed) for seed in range(4))


def test_what_comes_by_a_quiet_output_is_not_drowned(pose, tmp_path):
    """The cotangent of places in metres, a thousandth of those in pixels, is taken for half of what it is."""

    def halve(graph):
        graph.initializer.append(numpy_helper.from_array(np.asarray(0.5, np.float32), "half"))
        for node in graph.node:
            node.input[:] = ["halved" if x == "cotangent.near_y" else x for x in node.input]
        graph.node.insert(0, helper.make_node("Mul", ["cotangent.near_y", "half"], ["halved"]))

    wrong = altered(pose, tmp_path, halve)
    found = {p.id for p in check(wrong).points if not p.passed}
    assert found == {"first", "second", "near"}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", [n for n in POINTS if n != "flag"])
def test_an_adapter_is_as_loud_as_is_said(name, seed, pose):
    """The output that changes most changes by a fortieth to a seventh; one that is shut counts as a hundredth."""
    inputs, rng = inputs_of(pose), np.random.default_rng(seed)
    base = {**inputs, **absent_adapter(pose.manifest)}
    point = next(p for p in pose.manifest.points if p.id == name)
    a, b = random_pair(point, rng)
    b *= gentle_factor(pose, base, {point.input_a: a, point.input_b: b})
    off, on = pose.forward.run(base), pose.forward.run({**base, point.input_a: a, point.input_b: b})
    change = max(np.linalg.norm(on[n] - y) / max(np.linalg.norm(y), 1e-2 * y.size**0.5) for n, y in off.items())
    assert 1 / 40 <= change <= 1 / 7


def test_a_sigmoid_that_is_shut_is_opened(pose):
    """In whichever direction does: a hundred times what it says."""
    inputs, point = inputs_of(pose), next(p for p in pose.manifest.points if p.id == "flag")
    base = {**inputs, **absent_adapter(pose.manifest)}
    for seed in range(8):
        a, b = random_pair(point, np.random.default_rng(seed))
        for sign in (1, -1):
            b = (sign * b).astype(np.float32)
            opened = b * gentle_factor(pose, base, {point.input_a: a, point.input_b: b})
            off, on = pose.forward.run(base), pose.forward.run({**base, point.input_a: a, point.input_b: opened})
            assert 100 * off["flag_y"].max() < on["flag_y"].max() < 0.05
