"""Prove a bundle on this machine: parity with its source, and every gradient of every training graph.

Nothing here knows the gradient rules: gradients are held against finite differences (gradient_checks.py), and graphs
against others that compute the same (graph_checks.py). Of a base that was quantized at conversion, the float32
gradients are known: these decide (quantization.py), and the differences are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edgelora.bundle import MANIFEST_FILE, Bundle
from edgelora.divergence import Divergence, check_alike, check_divergence, is_asked
from edgelora.files import write_atomic
from edgelora.gradient_checks import PointVerdict, check_head, check_point, rounds_activations
from edgelora.graph_checks import (
    GraphVerdict,
    check_graph,
    check_halves,
    check_method,
    check_mixed,
    check_prefix,
    check_recomputed,
)
from edgelora.language_checks import check_decode
from edgelora.manifest import LORA_GRAPHS, InsertionPoint, Manifest
from edgelora.parity import parity_errors, parity_samples, parity_tolerance, source_spread, written_sample
from edgelora.point_groups import check_points
from edgelora.probes import Feeds
from edgelora.quantization import QuantizedVerdict, check_quantization, has_twin
from edgelora.session import ENGINE_VERSION

_LARGE = 1 << 15  # numbers of a sample, as pictures and sounds have
_MANY = 16  # points of a language model, of which several are asked at a time


@dataclass(frozen=True)
class OutputVerdict:
    """How far an output is from the source's, how far it may be, and how far the source is from itself there.

    All three are relative to the output's largest value; `spread` is 0 where the source computes in one way.
    """

    output: str
    error: float
    allowed: float
    spread: float
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """What `check` found. `parity` is the largest difference to the source, relative to its largest value.

    `outputs` has it for each output, with what is allowed there.
    `points` has a row per insertion point that has a gradient, and one for the head where there is one; of a quantized
    language model, for the few whose differences were asked. `quantized` has the cosines of a bundle that was
    quantized at conversion, and `unreached` the points that have none there, for all of their gradient is zeros.
    `divergence` decides in place of the outputs' gaps where it is there.
    """

    passed: bool
    parity: float
    parity_samples: int
    points: tuple[PointVerdict, ...]
    graphs: tuple[GraphVerdict, ...]
    onnxruntime: str
    quantized: tuple[QuantizedVerdict, ...] = ()
    unreached: tuple[str, ...] = ()
    outputs: tuple[OutputVerdict, ...] = ()
    divergence: Divergence | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self)


def check(
    bundle: Bundle, extra: list[tuple[Feeds, Feeds]] | None = None, progress: Callable[[str], None] = lambda _: None
) -> Verdict:
    """Check a bundle; `extra` are further (inputs, source outputs) to compare with.

    Raises:
        BundleError: the bundle holds no parity samples, or a file of it is altered.
    """
    manifest = bundle.verified().manifest
    samples = [*parity_samples(bundle), *(extra or [])]
    progress("parity with the source")
    rng = np.random.default_rng(0)
    outputs = output_verdicts(manifest, parity_errors(bundle, samples, rng))
    inputs = samples[min(1, len(samples) - 1)][0]
    progress("gradients of the float32 base")
    quantized = check_quantization(bundle)
    decided = {verdict.id: verdict.passed for verdict in quantized}
    asked = manifest.trainable if manifest.language is None else asked_points(manifest.trainable, decided)

    def tell(done: int, point: InsertionPoint) -> None:
        progress(f"point {done + 1} of {len(asked)}: {point.id}")

    if manifest.language is not None and not rounds_activations(bundle) and len(asked) >= _MANY:
        points = check_points(bundle, asked, inputs, rng, tell)
    else:
        points = _one_by_one(bundle, asked, inputs, samples[0][0], decided, rng, tell)
    if manifest.head is not None:
        points.append(check_head(bundle, inputs, rng))
    graphs: list[GraphVerdict] = []
    for record in manifest.training:
        if record.dropout or record.loss != "cotangent":
            progress(record.file)
            graphs.append(check_graph(bundle, record, inputs, rng))
        if record.recomputed is not None:
            progress(record.recomputed.file)
            graphs.append(check_recomputed(bundle, record, record.recomputed.file, inputs, rng))
        if record.halves is not None:
            progress(record.halves.backward)
            graphs.append(check_halves(bundle, record, record.halves, inputs, rng, LORA_GRAPHS))
    for name, found in manifest.methods.items():
        for record in found.training:
            progress(record.file)
            graphs.append(check_method(bundle, record, name, inputs, rng))
            if record.halves is not None:
                graphs.append(check_halves(bundle, record, record.halves, inputs, rng, name))
    if manifest.mixed is not None:
        progress(manifest.mixed)
        graphs.append(check_mixed(bundle, manifest.mixed, inputs, rng))
    if manifest.language is not None:
        progress(manifest.language.decode)
        graphs += check_decode(bundle, manifest.language, inputs, rng)
    written, divergence = written_sample(bundle), None
    if written is not None and manifest.language is not None and is_asked(bundle):
        progress("what the source wrote")
        divergence = check_divergence(bundle, written, samples)
        outputs = tuple(replace(verdict, passed=divergence.passed) for verdict in outputs)
        graphs += check_alike(bundle, manifest.language, written[0])
    for prefix in manifest.prefixes:
        progress(prefix.file)
        graphs += check_prefix(bundle, prefix, inputs, rng)
    passed = all(v.passed for v in (*outputs, *points, *graphs, *quantized))
    unreached = tuple(point.id for point in manifest.trainable if has_twin(bundle) and point.id not in decided)
    found = (tuple(points), tuple(graphs), ENGINE_VERSION, quantized, unreached, outputs, divergence)
    return Verdict(passed, max(v.error for v in outputs), len(samples), *found)


def _one_by_one(
    bundle: Bundle,
    points: Sequence[InsertionPoint],
    batch: Feeds,
    alone: Feeds,
    decided: Mapping[str, bool],
    rng: np.random.Generator,
    progress: Callable[[int, InsertionPoint], None],
) -> list[PointVerdict]:
    """Each point's verdict; of those that known gradients have `decided`, A and B together, for these are but shown."""
    large = is_large(alone)
    found: list[PointVerdict] = []
    for point, on in inputs_of_points(points, batch, alone):
        progress(len(found), point)
        shown = bundle.manifest.language is not None and point.id in decided
        verdict = check_point(bundle, point, on, rng, together=shown)
        if not verdict.passed and large:  # it bends at so many places, one sample more than the mean of several
            verdict = check_point(bundle, point, batch, rng)
        found.append(replace(verdict, passed=decided.get(point.id, verdict.passed)))
    return found


def output_verdicts(manifest: Manifest, errors: Mapping[str, float]) -> tuple[OutputVerdict, ...]:
    """The verdict on each output that is `errors` away from the source's."""
    verdicts: list[OutputVerdict] = []
    for output, error in errors.items():
        allowed = parity_tolerance(manifest, output)
        verdicts.append(OutputVerdict(output, error, allowed, source_spread(manifest, output), error <= allowed))
    return tuple(verdicts)


def asked_points(points: Sequence[InsertionPoint], decided: Mapping[str, bool]) -> list[InsertionPoint]:
    """Whose differences are asked: of points that known gradients decide the first and the last, and of all others."""
    known = [point.id for point in points if point.id in decided]
    return [point for point in points if point.id not in decided or point.id in (known[0], known[-1])]


def is_large(sample: Feeds) -> bool:
    """Whether the network sees so many numbers that its ReLUs bend nearly everywhere, and gradients are dear."""
    return sum(x.size for x in sample.values()) >= _LARGE


def inputs_of_points(
    points: Sequence[InsertionPoint], batch: Feeds, alone: Feeds
) -> Iterator[tuple[InsertionPoint, Feeds]]:
    """Each point with what its gradient is checked on: the batch; of large samples only the first point of a kind.

    What sums over a batch is a kind's own, and others' gradients cost less of one sample, `alone`.
    """
    large = is_large(alone)
    seen = set[tuple[str, int, bool, bool]]()
    for point in points:
        kind = (point.op, len(point.kernel), max(point.kernel, default=1) == 1, point.groups == 1)
        yield point, alone if large and kind in seen else batch
        seen.add(kind)


def store_verdict(bundle: Bundle, verdict: Verdict) -> Manifest:
    """Write the verdict into the bundle's manifest; returns the new manifest."""
    manifest = replace(bundle.manifest, verification=verdict.to_dict())
    write_atomic(bundle.path / MANIFEST_FILE, manifest.to_json().encode())
    return manifest
