"""`edgelora check` with inputs of the user's: the source is run on them beside the bundle."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgelora.cli import main
from tests.convert.networks import WIDTH, perceptron, save


@pytest.fixture
def converted(tmp_path):
    source = save(perceptron(), tmp_path)
    bundle = tmp_path / "net.edgelora"
    arguments = ["convert", str(source), "-o", str(bundle), "--task", "feature-extraction", "--no-check"]
    assert main([*arguments, "--target-modules", "all-linear"]) == 0
    return source, bundle


def test_a_conversion_tells_its_stages(tmp_path, capsys):
    """A line each where standard error is no terminal; nothing with --json."""
    arguments = ["convert", str(save(perceptron(), tmp_path)), "--task", "feature-extraction"]
    assert main([*arguments, "-o", str(tmp_path / "a.edgelora"), "--target-modules", "all-linear"]) == 0
    stages = capsys.readouterr().err.splitlines()
    assert stages[0].startswith("reading ")
    assert "normal form" in stages
    assert "memory of train-cotangent.onnx" in stages
    assert stages[-1] == "checking"
    assert main([*arguments, "-o", str(tmp_path / "b.edgelora"), "--target-modules", "all-linear", "--json"]) == 0
    assert not capsys.readouterr().err


def test_given_inputs_are_compared_with_the_source(converted, tmp_path, capsys):
    source, bundle = converted
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.random.default_rng(0).standard_normal((3, WIDTH)))
    capsys.readouterr()
    assert main(["check", str(bundle), "--source", str(source), "--inputs", str(inputs), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["passed"]
    assert verdict["parity_samples"] == 4


def test_another_source_does_not_pass(converted, tmp_path, capsys):
    _, bundle = converted
    other = tmp_path / "other"
    other.mkdir()
    narrow = save(perceptron(output=3), other)
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.ones((3, WIDTH)))
    assert main(["check", str(bundle), "--source", str(narrow), "--inputs", str(inputs)]) == 1
    assert "FAILED" in capsys.readouterr().out
