"""What the tests of conversion share: source to bundle, and one graph against another through ONNX Runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.probes import random_head
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.runner import session_on
from edgelora_tools.sources import open_source
from tests.convert.networks import save

SIZES = ((1, 1), (1, 6), (2, 1), (3, 5), (5, 17))
CLOSE = 2e-5
ROOT = Path(__file__).parents[2]


def to_bundle(source: Path | onnx.ModelProto, folder: Path, name: str = "out", **options: Any) -> Bundle:
    """Convert with every point of the base adaptable, unless `options` say otherwise."""
    if isinstance(source, onnx.ModelProto):
        folder.mkdir(exist_ok=True, parents=True)
        source = save(source, folder, f"{name}.onnx")
    chosen: dict[str, Any] = {"task": "feature-extraction", "target_modules": "all-linear"} | options
    path = folder / f"{name}.edgelora"
    convert(open_source(str(source)), path, ConvertOptions(**chosen))
    return Bundle.open(path)


def base_outputs(bundle: Bundle, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the bundle says without adapter."""
    head = random_head(bundle.manifest, np.random.default_rng(0))
    return bundle.forward.run({**inputs, **absent_adapter(bundle.manifest), **head})


def run_onnx(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The source itself."""
    session = session_on(path)
    names = [y.name for y in session.get_outputs()]
    known = {x.name for x in session.get_inputs()}
    results = session.run(names, {k: v for k, v in inputs.items() if k in known})
    return dict(zip(names, map(np.asarray, results), strict=True))


def assert_same_outputs(bundle: Bundle, source: Path, inputs: dict[str, np.ndarray], tolerance: float = CLOSE) -> None:
    wanted = run_onnx(source, inputs)
    got = base_outputs(bundle, inputs)
    assert got, "no outputs to compare"
    for name, y in got.items():
        assert y.shape == wanted[name].shape
        assert y.dtype == np.float32
        assert relative(y, wanted[name]) < tolerance, name


def assert_checked(bundle: Bundle) -> None:
    verdict = check(bundle)
    assert verdict.points
    wrong = [(p.id, p.error) for p in verdict.points if not p.passed]
    assert verdict.passed, (verdict.parity, wrong)
    assert all(p.analytic != 0 for p in verdict.points)


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """The norm of the difference relative to the norm of what is wanted."""
    gap = np.linalg.norm(np.asarray(got, np.float64) - np.asarray(wanted, np.float64))
    return float(gap / max(float(np.linalg.norm(np.asarray(wanted, np.float64))), 1e-12))


def train_feeds(bundle: Bundle, inputs: dict[str, np.ndarray], rank: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs with a random adapter at every point and a random head."""
    rng = np.random.default_rng(seed)
    feeds = {**inputs, **random_head(bundle.manifest, rng)}
    for point in bundle.manifest.points:
        feeds[point.input_a] = (rng.standard_normal((point.in_features, rank)) * 0.3).astype(np.float32)
        feeds[point.input_b] = (rng.standard_normal((rank, point.out_features)) * 0.3).astype(np.float32)
    return feeds


def run_python(script: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, with this checkout importable."""
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}", **environment}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
