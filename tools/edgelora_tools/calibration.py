"""Choose how each product of a base is quantized, so that no point's gradient turns from its float32 twin.

Each product has a ladder of choices with an error each (ladders.py). A threshold says which errors are allowed; each
product takes the first rung below it, else weights of 8 bits, else it stays real. The largest threshold of a geometric
series is taken at which the points' gradient cosines are enough (edgelora/quantization.py). Codes of 4 bits err alike
everywhere, and what that does to the gradients differs: there the search goes by what a product alone does to them, or
in a model of many products a few of a kind. Codes that a matrix was made of turn nothing.

The gradients are those of random cotangents; of a language model, those of the loss of the tokens that come next.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save

from edgelora.data import NumberSample, PairSample, TextSample, TokenSample, read_samples, read_texts
from edgelora.dimensions import evaluate_dimension
from edgelora.encoders import ENCODERS
from edgelora.errors import ConversionError
from edgelora.language.packing import RowInputs
from edgelora.language.samples import LanguageSample, Preference
from edgelora.language.tokenized import Lengths, rows_of
from edgelora.language.tokens import Tokens
from edgelora.manifest import InsertionPoint
from edgelora.quantization import QUANTIZATION_FILE, cosine, is_reached, near_enough
from edgelora.tasks import task_named
from edgelora_tools.damages import damages
from edgelora_tools.graphs import specs
from edgelora_tools.insertion import Site
from edgelora_tools.ladders import RUNGS, Ladder, ladders, weighed
from edgelora_tools.lowering import Lowered
from edgelora_tools.measure_shapes import Sizes, batch_name
from edgelora_tools.passes.quantize import Choice, Plan, Rung
from edgelora_tools.preprocessing import InputOptions, preprocessing_of
from edgelora_tools.runner import gradients_of, sample_inputs
from edgelora_tools.sources.base import Decoder, Source

Feeds = dict[str, NDArray]
Build = Callable[[Plan], ir.Model]
"""From a plan to the training graph with the loss `cotangent`; of an empty plan's products all are real."""

_TEXTS = 32  # of a calibration file; as many random inputs
_LANGUAGE_ROWS, _LANGUAGE_TOKENS, _LANGUAGE_MOST = 8, 64, 256  # of text that goes on, and of other samples
_RANK, _SIZE = 4, 0.05  # of the probe adapter
_SERIES = tuple(2 ** (-k / 4) for k in range(24))
_FAR = 2.0
_EXACT = (Rung.OWN_BLOCKS_4, Rung.OWN_WEIGHTS_4, Rung.BLOCKS_8, Rung.WEIGHTS_8, Rung.TOKENS_8)
_FINE, _ROUGH = 0.01, 0.1  # errors of outputs
_MARGIN = 5e-4  # another processor rounds differently


class CalibrationOptions(InputOptions, Protocol):
    """What of the conversion's options is read here."""

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
    """A quantized model and its pruned base, the plan, what the manifest says, and the twin's answers as a file."""

    model: ir.Model
    base: ir.Model
    plan: Plan
    facts: Mapping[str, Any]
    files: Mapping[str, bytes]


def calibrate(
    base: ir.Model,
    points: Sequence[InsertionPoint],
    sample: Feeds,
    build: Build,
    meanings: Mapping[str, Lowered],
    precision: str,
    apart: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    kept: Collection[str] = (),
    heads: Collection[str] = (),
    language: bool = False,
) -> Calibrated:
    """The plan for `base`, whose products see `sample`, at a precision; `points` are those that can be trained.

    With `apart` no row of a product depends on another. Weights of these names are `kept` real, and `heads` make
    logits. `language`: whether the points' cosines are to be enough for a language model.
    """
    rungs = [rung for rung in RUNGS[precision] if not (apart and rung.by_tensor)]
    found = {name: [] for name in kept} | ladders(base, sample, meanings, rungs, kept, heads)
    real = {name: Choice(Rung.REAL) for name in found}
    twin = build(real)
    feeds = probe(twin, sample)
    with gradients_of(twin) as answer:
        gradients = answer(feeds)
    trained = [p for p in points if f"grad.{p.input_b}" in gradients]

    def cosines(got: Feeds) -> dict[str, float]:
        return {p.id: cosine(p, got, gradients) for p in trained if is_reached(p, got, gradients)}

    def of_plan(plan: Plan) -> dict[str, float]:
        with gradients_of(build(plan)) as answer:
            return cosines(answer(feeds))

    rounded = {name: ladder for name, ladder in found.items() if ladder and ladder[0].choice.rung is Rung.BLOCKS_4}
    if rounded:
        progress("what each product's codes turn")
        turns = damages(twin, base, rounded, lambda g: 1 - min(cosines(g).values(), default=1.0), feeds)
        found |= {name: weighed(ladder, turns.get(name, 0.0)) for name, ladder in rounded.items()}
    largest = max((ladder[0].turn for ladder in found.values() if ladder), default=0.0)
    thresholds = [largest * part for part in _SERIES] if largest else [0.0]
    best = (real, cosines(gradients))
    low, high = 0, len(thresholds)
    while low < high:  # the first threshold that does
        middle = (low + high) // 2
        plan = _plan(found, thresholds[middle])
        turned = of_plan(plan)
        near = list(turned.values())
        told = f"least cosine {min(near, default=1.0):.4f}, mean {np.mean(near or [1.0]):.4f}"
        progress(f"quantized within {thresholds[middle]:.4f}: {told}")
        if all(near_enough(near, language, _MARGIN)):
            best, high = (plan, turned), middle
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


def language_sample(
    source: Source, decoder: Decoder, model: ir.Model, sizes: Sizes, options: CalibrationOptions
) -> Feeds:
    """The same of a language model, with the inputs of its loss: as many rows of the file as hold some hundred tokens.

    Rows are as in training; of preferences the chosen answers are read.

    Raises:
        ConversionError, DataError: the file is none that this model trains on.
    """
    if options.calibration is None:
        feeds = calibration_sample(source, model, model, sizes, options)
        return feeds | _next_tokens(feeds)
    read = task_named(options.task).read(options.calibration)[:_TEXTS]
    samples = [one.answers[0] if isinstance(one, Preference) else one for one in read]
    most = min(decoder.max_length or _LANGUAGE_MOST, _LANGUAGE_MOST)
    lengths = Lengths(most, min(_LANGUAGE_TOKENS, most), truncate=True)
    with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
        for name, content in source.files.items():
            (Path(folder) / name).write_bytes(content)
        template = None if decoder.chat_template is None else Path(folder) / decoder.chat_template
        tokens = Tokens(Path(folder) / "tokenizer.json", decoder.vocabulary, decoder.bos, decoder.eos, template)
        rows = rows_of([one for one in samples if isinstance(one, LanguageSample)], tokens, lengths)
    before = np.cumsum([0, *(len(row) for row in rows)])[:-1]
    data = RowInputs(rows[: np.count_nonzero(before < _LANGUAGE_ROWS * _LANGUAGE_TOKENS)])
    every = np.arange(len(data))
    counted = data.counted(every)
    targets = {"labels": np.maximum(data.labels(every), 0), "loss_weight": counted / counted.sum()}
    return data.feeds(every) | targets


def calibration_sample(
    source: Source, model: ir.Model, base: ir.Model, sizes: Sizes, options: CalibrationOptions
) -> Feeds:
    """A batch to calibrate on: texts, pictures or sounds of the file that `options` name, else random inputs.

    Raises:
        ConversionError: there is a file, and the source has no tokenizer and takes no pictures or sounds.
    """
    taken = {str(v.name) for v in base.graph.inputs}
    if options.calibration is None:
        batch = batch_name(model)
        tried = sizes | ({batch: _TEXTS} if batch is not None else {})
        feeds = sample_inputs(model, tried, np.random.default_rng(0))
    else:
        taken_in = specs(base.graph.inputs)
        settings, features = preprocessing_of(source, taken_in, options)
        if settings["kind"] not in ENCODERS:
            raise ConversionError(f"{options.calibration}: the source has no tokenizer for texts to calibrate on")
        with tempfile.TemporaryDirectory(prefix="edgelora-") as folder:
            for name, content in {**source.files, **features}.items():
                (Path(folder) / name).write_bytes(content)
            encoder = ENCODERS[settings["kind"]](Path(folder), settings, taken_in)
            made = encoder.inputs(_raw_inputs(options.calibration, options.task)[:_TEXTS])
            feeds = made.feeds(np.arange(len(made)))
    return {name: x for name, x in feeds.items() if name in taken}


def _next_tokens(feeds: Feeds) -> Feeds:
    """The inputs of a language model's loss: the mean over the tokens that another of the same text follows."""
    ids, mask = feeds["input_ids"], feeds["attention_mask"]
    counted = (mask != 0) & (np.roll(mask, -1, axis=1) == mask)
    counted[:, -1] = False
    weight = counted / max(np.count_nonzero(counted), 1)
    return {"labels": np.roll(ids, -1, axis=1), "loss_weight": weight.astype(np.float32)}


def _raw_inputs(path: Path, task: str) -> list[Any]:
    """What the file of samples gives a model to read."""
    if task == "feature-extraction":
        return read_texts(path)
    if task_named(task).inputs_name != "texts":
        return [line.content for line in task_named(task).read_inputs(path)]
    texts: list[str] = []
    for sample in read_samples(path, task):
        if isinstance(sample, TokenSample):
            texts.append(" ".join(sample.words))
        elif isinstance(sample, PairSample):
            texts.append(sample.anchor)
        elif isinstance(sample, TextSample | NumberSample):
            texts.append(sample.text)
    return texts


def _plan(found: Mapping[str, Ladder], threshold: float) -> Plan:
    """The first rung below the threshold, or the nearest of integers unless it is far beyond. Where there is none,
    weights of 8 bits in blocks, which go back exactly; a product whose output even these would spoil stays real."""

    def chosen(ladder: Ladder) -> Choice:
        near = [c for c in ladder if c.error <= _ROUGH]
        exact = [c for c in near if c.choice.rung in _EXACT]
        within = [c for c in near if c.turn <= threshold and c.choice.rung not in _EXACT]
        nearest = [c for c in near if c.turn <= _FAR * threshold and not c.choice.rung.in_blocks][-1:]
        fine = [c for c in exact if c.error <= _FINE] or sorted(exact, key=lambda c: c.error)
        return next((c.choice for c in (*within, *nearest, *fine)), Choice(Rung.REAL))

    return {name: chosen(ladder) for name, ladder in found.items()}


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
