"""Prove a bundle on this machine: parity with its source, and every gradient against finite differences.

Nothing here knows the gradient rules: f(θ) = Σ <c, output(θ)> is evaluated by the inference graph, its
derivative along a random direction by differences, and compared with the training graph's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

from edgelora.bundle import MANIFEST_FILE, Bundle
from edgelora.errors import BundleError
from edgelora.files import write_atomic
from edgelora.manifest import InsertionPoint, Manifest
from edgelora.session import ENGINE_VERSION

PARITY_FILE = "parity.safetensors"
PARITY_TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
GRADIENT_TOLERANCE = 2e-2
_RANK = 4
_STEPS = (4e-2, 2e-2)

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PointVerdict:
    """A point's gradient: the analytic and the numeric directional derivative, and their relative gap."""

    id: str
    analytic: float
    numeric: float
    error: float
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """What `check` found. `parity` is the largest difference to the source, relative to its largest value."""

    passed: bool
    parity: float
    parity_samples: int
    points: tuple[PointVerdict, ...]
    onnxruntime: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(
    bundle: Bundle, extra: list[tuple[Feeds, Feeds]] | None = None, progress: Callable[[str], None] = lambda _: None
) -> Verdict:
    """Check a bundle; `extra` are further (inputs, source outputs) to compare with.

    Raises:
        BundleError: the bundle holds no parity samples.
    """
    manifest = bundle.manifest
    samples = [*parity_samples(bundle), *(extra or [])]
    progress("parity with the source")
    rng = np.random.default_rng(0)
    parity = max(parity_error(bundle, inputs, outputs, rng) for inputs, outputs in samples)
    inputs = samples[min(1, len(samples) - 1)][0]
    verdicts: list[PointVerdict] = []
    for point in manifest.points:
        progress(point.id)
        verdicts.append(check_point(bundle, point, inputs, rng))
    tolerance = PARITY_TOLERANCE[manifest.source.get("precision", "float32")]
    passed = parity <= tolerance and all(v.passed for v in verdicts)
    return Verdict(passed, parity, len(samples), tuple(verdicts), ENGINE_VERSION)


def store_verdict(bundle: Bundle, verdict: Verdict) -> Manifest:
    """Write the verdict into the bundle's manifest; returns the new manifest."""
    manifest = replace(bundle.manifest, verification=verdict.to_dict())
    write_atomic(bundle.path / MANIFEST_FILE, manifest.to_json().encode())
    return manifest


def parity_samples(bundle: Bundle) -> list[tuple[Feeds, Feeds]]:
    """Inputs and the source's outputs for them, recorded at conversion."""
    path = bundle.path / PARITY_FILE
    try:
        arrays = load_file(path)
    except Exception as error:
        raise BundleError(f"{path}: cannot be read ({error}); convert the model again") from error
    samples: dict[str, tuple[Feeds, Feeds]] = {}
    for key, array in arrays.items():
        number, side, name = key.split("/", 2)
        samples.setdefault(number, ({}, {}))[side == "out"][name] = array
    return [samples[number] for number in sorted(samples)]


def parity_error(bundle: Bundle, inputs: Feeds, source: Mapping[str, NDArray[Any]], rng: np.random.Generator) -> float:
    """The largest difference between the bundle without adapter and the source, relative to the largest value.

    A new head has no counterpart in the source: a random one is applied to the source's pooled output here.
    """
    feeds: Feeds = {**inputs, **absent_adapter(bundle.manifest)}
    head = random_head(bundle.manifest, rng)
    ours = bundle.forward.run({**feeds, **head})
    theirs = expected_outputs(bundle.manifest, inputs, source, head)
    worst = 0.0
    for name, wanted in theirs.items():
        wanted = np.asarray(wanted, np.float64)
        got = np.asarray(ours[name], np.float64)
        if got.shape != wanted.shape:
            return float("inf")
        scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(got - wanted).max(initial=0.0)) / scale)
    return worst


def expected_outputs(
    manifest: Manifest, inputs: Feeds, source: Mapping[str, NDArray[Any]], head: Feeds
) -> dict[str, NDArray[Any]]:
    """The task's outputs from the source's, in float64 numpy."""
    if manifest.task == "feature-extraction":
        return {spec.name: source[spec.name] for spec in manifest.outputs}
    (base,) = source.values()
    base = base.astype(np.float64)
    pooling = manifest.source.get("pooling", "mean")
    if manifest.task != "token-classification" and base.ndim == 3:
        if pooling == "cls":
            base = base[:, 0]
        elif "attention_mask" in inputs:
            mask = inputs["attention_mask"].astype(np.float64)[..., None]
            base = (base * mask).sum(1) / np.maximum(mask.sum(1), 1e-9)
        else:
            base = base.mean(1)
    if manifest.head is None:
        return {"embedding": base / np.linalg.norm(base, axis=-1, keepdims=True)}
    weight, bias = (head[name].astype(np.float64) for name in (manifest.head.weight, manifest.head.bias))
    return {"logits": base @ weight.T + bias}


def check_point(bundle: Bundle, point: InsertionPoint, inputs: Feeds, rng: np.random.Generator) -> PointVerdict:
    """One point's A and B moved together along a random direction, all other points absent.

    Central differences at two steps, extrapolated (Richardson), so that the float32 forward pass and
    the curvature leave about 1e-3; a wrong sign, factor or transpose is off by order one.
    """
    manifest = bundle.manifest
    graph = bundle.training("cotangent", dropout=False)
    a = rng.standard_normal((point.in_features, _RANK)).astype(np.float32) / np.float32(point.in_features**0.5)
    b = rng.standard_normal((_RANK, point.out_features)).astype(np.float32) / np.float32(_RANK**0.5)
    da, db = (rng.standard_normal(x.shape).astype(np.float32) * x.std() for x in (a, b))
    base: Feeds = {**inputs, **absent_adapter(manifest), **random_head(manifest, rng)}
    b *= _gentle(bundle, base, point, a, b)
    db *= b.std()

    def outputs(step: float) -> dict[str, NDArray[Any]]:
        moved = {point.input_a: a + np.float32(step) * da, point.input_b: b + np.float32(step) * db}
        return bundle.forward.run({**base, **moved})

    here = outputs(0.0)
    cotangents = {f"cotangent.{n}": rng.standard_normal(y.shape).astype(np.float32) for n, y in here.items()}
    names = [f"grad.{point.input_a}", f"grad.{point.input_b}"]
    if point.id not in graph.points:
        return PointVerdict(point.id, 0.0, 0.0, 0.0, True)
    grads = bundle.graph(graph.file).run({**base, **cotangents, point.input_a: a, point.input_b: b}, names)
    parts = [grads[names[0]].astype(np.float64) * da, grads[names[1]].astype(np.float64) * db]
    analytic = float(sum(p.sum() for p in parts))

    def slope(step: float) -> float:
        ahead, behind = outputs(step), outputs(-step)
        return sum(
            float(np.sum(cotangents[f"cotangent.{n}"].astype(np.float64) * (ahead[n].astype(np.float64) - behind[n])))
            for n in here
        ) / (2 * step)

    coarse, fine = (slope(step) for step in _STEPS)
    numeric = (4 * fine - coarse) / 3
    scale = max(abs(analytic), abs(numeric), *(float(np.sqrt((p**2).sum())) for p in parts), 1e-12)
    error = abs(analytic - numeric) / scale
    return PointVerdict(point.id, analytic, numeric, error, bool(error <= GRADIENT_TOLERANCE))


def _gentle(bundle: Bundle, base: Feeds, point: InsertionPoint, a: NDArray[Any], b: NDArray[Any]) -> np.float32:
    """A factor for B at which the adapter changes the outputs by a tenth: well seen and still smooth."""
    off, on = bundle.forward.run(base), bundle.forward.run({**base, point.input_a: a, point.input_b: b})
    change = max(float(np.linalg.norm(on[n] - off[n]) / (np.linalg.norm(off[n]) + 1e-12)) for n in off)
    return np.float32(min(1.0, 0.1 / max(change, 1e-6)))


def absent_adapter(manifest: Manifest) -> Feeds:
    """Rank 0 at every point: the base model."""
    feeds: Feeds = {}
    for point in manifest.points:
        feeds[point.input_a] = np.zeros((point.in_features, 0), np.float32)
        feeds[point.input_b] = np.zeros((0, point.out_features), np.float32)
    return feeds


def random_head(manifest: Manifest, rng: np.random.Generator, outputs: int = 3) -> Feeds:
    """A random head, if the task has one."""
    head = manifest.head
    if head is None:
        return {}
    weight = rng.standard_normal((outputs, head.features)).astype(np.float32) / np.float32(head.features**0.5)
    return {head.weight: weight, head.bias: rng.standard_normal(outputs).astype(np.float32)}
