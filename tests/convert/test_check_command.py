"""`edgelora check` with inputs of the user's: the source is run on them beside the bundle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgelora.bundle import MANIFEST_FILE, Bundle
from edgelora.cli import main
from edgelora.manifest import FileEntry
from edgelora.parity import PARITY_FILE
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


@pytest.mark.parametrize(("spread", "said"), [(1e-3, "three times, 3.0e-03"), (0.5, "no more than 2.0e-02")])
def test_a_source_that_disagrees_with_itself_allows_no_output_to_be_anything(converted, capsys, spread, said):
    """The file's outputs are a tenth off, which kernels that are half apart would excuse three times over."""
    _, bundle = converted
    manifest = Bundle.open(bundle).manifest
    output = manifest.outputs[0].name
    samples = load_file(bundle / PARITY_FILE)
    save_file({name: 1.1 * x if "/out/" in name else x for name, x in samples.items()}, bundle / PARITY_FILE)
    content = (bundle / PARITY_FILE).read_bytes()
    entry = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    source = {**manifest.source, "spread": {output: spread}}
    altered = replace(manifest, source=source, files={**manifest.files, PARITY_FILE: entry})
    (bundle / MANIFEST_FILE).write_text(altered.to_json())
    capsys.readouterr()
    assert main(["check", str(bundle)]) == 1
    printed = capsys.readouterr().out
    assert f"{output}: the source's own kernels are {spread:.1e} apart here, of which parity allows {said}" in printed
    (row,) = [line.split() for line in printed.splitlines() if line.startswith(output) and "WRONG" in line]
    assert float(row[1]) == pytest.approx(1 / 11, rel=1e-2)
    assert main(["check", str(bundle), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["outputs"]
    assert found["spread"] == spread and not found["passed"]
