"""Choose how each product of a base is quantized, so that no point's gradient turns from its float32 twin.

A choice's error is local: a product's output on a sample against the real one. A threshold says which
errors are allowed; each product takes the fastest rung below it, or stays real. The largest threshold of a geometric
series is taken at which every point's gradient cosine is enough (edgelora/quantization.py).
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import GraphBuilder
from safetensors.numpy import save

from edgelora.data import PairSample, TokenSample, read_samples, read_texts
from edgelora.dimensions import evaluate_dimension
from edgelora.errors import ConversionError
from edgelora.manifest import InsertionPoint, TensorSpec
from edgelora.quantization import LEAST_COSINE, QUANTIZATION_FILE, cosine
from edgelora.text import TextEncoder
from edgelora_tools.composites.quantized_product import TOP, ZERO
from edgelora_tools.insertion import Site
from edgelora_tools.lowering import DOMAIN, Lowered, lower_nodes
from edgelora_tools.measure_shapes import Sizes, batch_name
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.quantize import Choice, Product, Rung, product_codes, products
from edgelora_tools.runner import open_session, sample_inputs
from edgelora_tools.sources.base import Source

Feeds = dict[str, NDArray]
Plan = dict[str, Choice]
Build = Callable[[Plan], ir.Model]
"""From a plan to the training graph with the loss `cotangent`; of an empty plan's products all are real."""

_TEXTS = 32  # of a calibration file; as many random inputs
_ROWS = 512  # of a sample, that errors are measured on
_RANK, _SIZE = 4, 0.05  # of the probe adapter
_SERIES = tuple(2 ** (-k / 4) for k in range(24))
_FAR = 2.0
_MARGIN = 5e-4  # another processor rounds differently
_FEW_NEGATIVE = 32  # the code of 0 in rows that are nearly all positive
_GAIN = 0.8  # evened channels cost a pass over memory: they must bring this


class CalibrationOptions(Protocol):
    """What of the conversion's options is read here."""

    @property
    def task(self) -> str: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def calibration(self) -> Path | None: ...


@dataclass(frozen=True)
class Calibrated:
    """The plan, the probe's feeds, and the twin's gradients for them; each point's cosine under the plan."""

    plan: Plan
    feeds: Feeds
    gradients: Feeds
    cosines: Mapping[str, float]


@dataclass(frozen=True)
class Quantized:
    """A quantized model and its pruned base, what the manifest says of it, and the twin's answers as a file."""

    model: ir.Model
    base: ir.Model
    facts: Mapping[str, Any]
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Candidate:
    """A choice and its local error."""

    choice: Choice
    error: float


def calibrate(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    sample: Feeds,
    build: Build,
    meanings: Mapping[str, Lowered],
    progress: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """The plan for `base`, whose products see `sample`; `points` are those that can be trained."""
    ladders = _ladders(base, sample, meanings)
    real = {name: Choice(Rung.REAL) for name in ladders}
    twin = build(real)
    feeds = probe(twin, sample)
    gradients = _gradients(twin, feeds)
    trained = [p for p in points if f"grad.{p.input_b}" in gradients]

    def cosines(plan: Plan) -> dict[str, float]:
        found = _gradients(build(plan), feeds)
        return {p.id: cosine(p, found, gradients) for p in trained}

    largest = max((ladder[0].error for ladder in ladders.values()), default=0.0)
    best = (real, cosines(real))
    low, high = 0, len(_SERIES)
    while low < high:  # the first threshold of the series that does
        middle = (low + high) // 2
        plan = _plan(ladders, largest * _SERIES[middle])
        found = cosines(plan)
        progress(
            f"quantized within {largest * _SERIES[middle]:.4f}: least cosine {min(found.values(), default=1.0):.4f}"
        )
        if min(found.values(), default=1.0) >= LEAST_COSINE + _MARGIN:
            best, high = (plan, found), middle
        else:
            low = middle + 1
    return Calibrated(best[0], feeds, gradients, best[1])


def facts(found: Calibrated, sites: Sequence[Site]) -> dict[str, Any]:
    """For the manifest: how many products are computed how, and the ids of those that stayed real."""
    ids = {str(use.product.inputs[1].name): s.point.id for s in sites for use in s.uses if use.product.inputs[1]}
    counts = Counter(str(choice.rung) for choice in found.plan.values())
    real = [ids.get(name, name) for name, choice in found.plan.items() if choice.rung is Rung.REAL]
    return {"products": dict(sorted(counts.items())), "float32": real}


def files(found: Calibrated) -> dict[str, bytes]:
    """The twin's answers, for `edgelora check`."""
    arrays = {f"in/{name}": x for name, x in found.feeds.items()} | {f"out/{n}": x for n, x in found.gradients.items()}
    return {QUANTIZATION_FILE: save({name: np.asarray(x, order="C") for name, x in arrays.items()})}


def calibration_sample(
    source: Source, model: ir.Model, base: ir.Model, sizes: Sizes, options: CalibrationOptions
) -> Feeds:
    """A batch to calibrate on: texts of the file that `options` name, else random inputs.

    Raises:
        ConversionError: there is a file, and the source has no tokenizer.
    """
    taken = {str(v.name) for v in base.graph.inputs}
    if options.calibration is None:
        batch = batch_name(model)
        tried = sizes | ({batch: _TEXTS} if batch is not None else {})
        feeds = sample_inputs(model, tried, np.random.default_rng(0))
    else:
        settings = source.preprocessing(options.max_length)
        if settings["kind"] != "text":
            raise ConversionError(f"{options.calibration}: the source has no tokenizer for texts to calibrate on")
        with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
            for name, content in source.files.items():
                (Path(folder) / name).write_bytes(content)
            specs = [
                TensorSpec(str(v.name), v.dtype.numpy().name, ()) for v in base.graph.inputs if v.dtype is not None
            ]
            encoder = TextEncoder(Path(folder), settings, specs)
            feeds = encoder.encode(_texts(options.calibration, options.task)[:_TEXTS])
    return {name: x for name, x in feeds.items() if name in taken}


def _texts(path: Path, task: str) -> list[str]:
    if task == "feature-extraction":
        return read_texts(path)
    texts: list[str] = []
    for sample in read_samples(path, task):
        if isinstance(sample, TokenSample):
            texts.append(" ".join(sample.words))
        else:
            texts.append(sample.anchor if isinstance(sample, PairSample) else sample.text)
    return texts


def _plan(ladders: Mapping[str, Sequence[Candidate]], threshold: float) -> Plan:
    """The first rung below the threshold; else the most exact, unless even that is far beyond it: then the product
    stays real."""

    def chosen(ladder: Sequence[Candidate]) -> Choice:
        within = [c.choice for c in ladder if c.error <= threshold]
        far = ladder[-1].error > _FAR * threshold
        return within[0] if within else Choice(Rung.REAL) if far else ladder[-1].choice

    return {name: chosen(ladder) for name, ladder in ladders.items()}


def _ladders(base: ir.Model, sample: Feeds, meanings: Mapping[str, Lowered]) -> dict[str, list[Candidate]]:
    """For each weight, its candidates from the fastest to the most exact, on the inputs of all its products."""
    by_input: dict[str, list[Product]] = {}
    for product in products(base):
        x = product.node.inputs[0]
        assert x is not None
        by_input.setdefault(str(x.name), []).append(product)
    ladders: dict[str, list[Candidate]] = {}
    for name, x in activations(base, list(by_input), sample, meanings).items():
        rows = x.reshape(-1, x.shape[-1])
        rows = rows[:: max(1, len(rows) // _ROWS)].astype(np.float32)
        group = by_input[name]
        ladder = _ladder(rows, [product.matrix for product in group])
        for weight in {str(product.weight.name) for product in group}:
            ladders[weight] = _worse(ladders.get(weight), ladder)
    return ladders


def _worse(known: list[Candidate] | None, found: list[Candidate]) -> list[Candidate]:
    """Of a weight that several inputs meet, the larger error at every rung."""
    return found if known is None else [max(pair, key=lambda c: c.error) for pair in zip(known, found, strict=True)]


def _few(rows: NDArray[np.float32]) -> float:
    return float(np.abs(rows).max(1).mean()) * _FEW_NEGATIVE / (TOP - _FEW_NEGATIVE)


def _even(rows: NDArray[np.float32], matrices: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """t = √(max|W| / max|X|), channel by channel (SmoothQuant, α = ½), the same for products that share X."""
    x = np.maximum(np.abs(rows).max(0, initial=0.0), 1e-5)
    w = np.maximum(np.max([np.abs(w).max(1) for w in matrices], 0), 1e-5)
    return np.sqrt(w / x).astype(np.float32)


def _ladder(rows: NDArray[np.float32], matrices: Sequence[NDArray[np.float32]]) -> list[Candidate]:
    """The best choice at every rung, from the fastest to the most exact, the same for all products of an input: they
    share its codes."""
    even = _even(rows, matrices)
    middle = _FEW_NEGATIVE if -rows.min(initial=0.0) < _few(rows) else ZERO
    outputs = [rows @ w for w in matrices]

    def measured(choice: Choice) -> Candidate:
        t = np.ones(rows.shape[1], np.float32) if choice.even is None else choice.even
        seen = rounded(rows * t, choice)
        errors = [_relative(seen @ _made(w, choice), y) for w, y in zip(matrices, outputs, strict=True)]
        return Candidate(choice, max(errors))

    found: list[Candidate] = []
    for rung in (Rung.TENSOR_7, Rung.TENSOR_8, Rung.ROWS_7, Rung.ROWS_8):
        middles = dict.fromkeys((ZERO, middle)) if rung.by_rows else (ZERO,)
        best = min((measured(Choice(rung, None, m)) for m in middles), key=lambda c: c.error)
        evened = measured(Choice(rung, even, ZERO))
        found.append(evened if evened.error < _GAIN * best.error else best)
    return found


def _made(w: NDArray[np.float32], choice: Choice) -> NDArray[np.float32]:
    """(Wq − zw)∘s: what evened inputs are multiplied by."""
    codes, scale = product_codes(w, choice)
    return (codes.astype(np.float32) - (ZERO if codes.dtype == np.uint8 else 0)) * scale


def rounded(x: NDArray[np.float32], choice: Choice) -> NDArray[np.float32]:
    """What the codes of X `[rows, in]` stand for, as the composite makes them."""
    if not choice.rung.by_rows:
        low, high = min(float(x.min(initial=0.0)), 0.0), max(float(x.max(initial=0.0)), 0.0)
        step = (high - low) / TOP or 1.0
        zero = np.rint(-low / step)
        return ((np.clip(np.rint(x / step) + zero, 0, TOP) - zero) * step).astype(np.float32)
    up = TOP - choice.middle
    highest, lowest = x.max(1, keepdims=True, initial=0.0), x.min(1, keepdims=True, initial=0.0)
    rho = np.maximum(np.maximum(highest, lowest * (-up / choice.middle)), 1e-30)
    return (np.clip(np.rint(x / rho * up), -choice.middle, up) / up * rho).astype(np.float32)


def _relative(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def activations(
    base: ir.Model, names: Sequence[str], sample: Feeds, meanings: Mapping[str, Lowered]
) -> dict[str, NDArray]:
    """The values of these names in the base, run on `sample`."""
    model = base.clone()
    by_name = {str(y.name): y for node in model.graph for y in node.outputs}
    by_name |= {str(x.name): x for x in model.graph.inputs}
    model.graph.outputs[:] = [by_name[name] for name in names if name not in sample]
    lower_nodes(model.graph, GraphBuilder(free_names(model.graph)).op, meanings)
    model.graph.opset_imports.pop(DOMAIN, None)
    given = {name: sample[name] for name in names if name in sample}
    if not model.graph.outputs:
        return given
    with open_session(model) as session:
        wanted = [y.name for y in session.get_outputs()]
        taken = {x.name for x in session.get_inputs()}
        values = session.run(wanted, {name: x for name, x in sample.items() if name in taken})
        return given | dict(zip((n for n in names if n not in sample), map(np.asarray, values), strict=True))


def probe(graph: ir.Model, sample: Feeds) -> Feeds:
    """Feeds of a training graph: the sample, a random adapter at every point, a random head, random cotangents."""
    rng, feeds, sizes = np.random.default_rng(0), dict(sample), {}
    for value in graph.graph.inputs:
        if value.name in sample and value.shape is not None:
            named = zip(value.shape, sample[value.name].shape, strict=True)
            sizes |= {str(d.value): n for d, n in named if not isinstance(d, int)}
    for value in graph.graph.inputs:
        assert value.name is not None and value.shape is not None and value.dtype is not None
        if value.name in sample:
            continue
        shape = []
        for d in value.shape:
            known = isinstance(d, int) or str(d.value) in sizes or any(sign in str(d.value) for sign in "*+")
            size = evaluate_dimension(d if isinstance(d, int) else str(d.value), sizes) if known else _RANK
            shape.append(size)
        size = _SIZE if value.name.endswith(".lora_B") else 1 / math.sqrt(max(shape, default=1))
        feeds[value.name] = (size * rng.standard_normal(shape)).astype(value.dtype.numpy())
    return feeds


def _gradients(graph: ir.Model, feeds: Feeds) -> Feeds:
    with open_session(graph) as session:
        names = [y.name for y in session.get_outputs() if y.name.startswith("grad.")]
        taken = {x.name for x in session.get_inputs()}
        values = session.run(names, {name: x for name, x in feeds.items() if name in taken})
        return dict(zip(names, map(np.asarray, values), strict=True))
