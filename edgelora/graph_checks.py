"""Whole graphs against others that compute the same: losses, methods, mixed batches, prefixes, recomputed, in two.

A loss graph is held against the cotangent graph, fed with the loss's derivative from numpy; a graph with dropout
against the one without, by masks of ones, and against differences of its own loss under random masks. The graph of
mixed batches is held against the inference graph, row by row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.active import ActiveAdapter
from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.gradient_checks import PointVerdict, against_differences, loss_slope_error, rounds_activations
from edgelora.kinks import DRAWS, Place, Share, least_shares, moved
from edgelora.manifest import ATTENTION_OP, EMBEDDING_OP, LORA_GRAPHS, Halves, Prefix, TrainingGraph
from edgelora.mixing import AdapterStack
from edgelora.probes import CHANGE, OUTPUTS, RANK, Feeds, loss_feeds, loudness, random_head, random_pair, whole_adapter
from edgelora.reference_losses import REFERENCES
from edgelora.slopes import GRADIENT_TOLERANCE, LARGEST, ROUNDED_TOLERANCE, bounded

SAME_TOLERANCE = 1e-3
MIXED_TOLERANCE = 1e-4
_MIXED_RANKS, _MIXED_MEMORY = (0, 4, 2), 1 << 28
_NEAR = 0.1
_LEAST = 1e-4  # of the largest gradient: one that is less is rounding, as of a key's bias, which moves no output
_ROUNDED = 1e-3  # of the largest gradient: of less the errors are told as if it were so much
_ALONG = "loss along a direction"


@dataclass(frozen=True)
class GraphVerdict:
    """A training graph, or one of mixed batches: the largest relative error of what it returns, and where.

    The largest beside what is `allowed` there. That is more than elsewhere where what the graph is held against is
    `spread` from itself if its inputs and adapter move by a rounding (kinks.py).
    """

    file: str
    error: float
    allowed: float
    where: str
    passed: bool
    spread: float = 0.0


def check_graph(bundle: Bundle, record: TrainingGraph, inputs: Feeds, rng: np.random.Generator) -> GraphVerdict:
    """A loss graph, or one with dropout, with an adapter at every point."""
    return _against_twin(bundle, record, LORA_GRAPHS, inputs, rng)


def _against_twin(
    bundle: Bundle, record: TrainingGraph, graphs: str, inputs: Feeds, rng: np.random.Generator
) -> GraphVerdict:
    """A training graph against an independent reference, or where there is none, its own loss along a direction."""
    same, slope = _tolerances(bundle)
    graph = bundle.graph(record.file)
    first: Feeds = {}

    def draw() -> Place:
        values = _values(bundle, graphs, inputs, rng)
        feeds, made = _place(bundle, record, inputs, values, rng, graphs)
        if not first:
            first.update(feeds)
        got, (expected, noise) = graph.run(feeds), _expected(bundle, record, feeds, made, graphs)
        floors = {name: max(x, noise.get(name, 0.0)) for name, x in _floors(expected, feeds).items()}

        def again() -> Feeds:
            there = {**feeds, **moved({**inputs, **values}, rng)}
            return _expected(bundle, record, there, bundle.forward_in(graphs).run(there), graphs)[0]

        return _held(got, expected, floors, same, again)

    shares = least_shares(draw, _farthest(same))
    if "loss" in graph.outputs and (record.dropout or not shares):
        feeds = {**first, **_masks(record, first, rng)}
        names = [name for name in feeds if f"grad.{name}" in graph.outputs]
        shares[_ALONG] = Share(loss_slope_error(bundle, record, feeds, names, rng) / slope)
    return _worst(record.file, shares, lambda name: slope if name == _ALONG else same)


def _values(bundle: Bundle, graphs: str, inputs: Feeds, rng: np.random.Generator) -> Feeds:
    """A random adapter at every place of a set of graphs, and a random head."""
    if graphs == LORA_GRAPHS:
        return whole_adapter(bundle, inputs, rng)
    absent = absent_adapter(bundle.manifest, graphs, bundle)
    return {**method_adapter(bundle, graphs, absent, rng), **random_head(bundle.manifest, rng)}


def _place(
    bundle: Bundle,
    record: TrainingGraph,
    inputs: Feeds,
    values: Feeds,
    rng: np.random.Generator,
    graphs: str = LORA_GRAPHS,
) -> tuple[Feeds, Feeds]:
    """What a training graph takes beside an adapter's values, and what the inference graph makes with these."""
    made = bundle.forward_in(graphs).run({**inputs, **values})
    return {**inputs, **values, **loss_feeds(bundle.manifest, record, inputs, made, rng)}, made


def _masks(record: TrainingGraph, feeds: Feeds, rng: np.random.Generator) -> Feeds:
    """A random mask for each that a graph with dropout takes."""
    masks = [spec.name for spec in record.inputs if spec.dtype == "uint8"]
    return {name: (rng.random(feeds[name].shape) < 0.7).astype(np.uint8) for name in masks}


def check_method(
    bundle: Bundle, record: TrainingGraph, graphs: str, inputs: Feeds, rng: np.random.Generator
) -> GraphVerdict:
    """A training graph of another adapter method than LoRA, by name its set of graphs.

    The loss `cotangent` stands against differences of the set's inference graph, one point at a time, and that graph,
    with no adapter, against LoRA's; every other loss stands against an independent reference, with an adapter at every
    point.
    """
    same, slope = _tolerances(bundle)
    if record.loss == "cotangent":
        off, slopes = _method_slopes(bundle, graphs, inputs, rng)
        shares = {n: Share(e / same) for n, e in off.items()} | {n: Share(e / slope) for n, e in slopes.items()}
        return _worst(record.file, shares, lambda name: same if name in off else slope)
    return _against_twin(bundle, record, graphs, inputs, rng)


def _method_slopes(
    bundle: Bundle, graphs: str, inputs: Feeds, rng: np.random.Generator
) -> tuple[dict[str, float], dict[str, float]]:
    """Of a set of graphs how far each output is from LoRA's with no adapter, and each point's gradient from a slope."""
    manifest, forward = bundle.manifest, bundle.forward_in(graphs)
    absent, head = absent_adapter(manifest, graphs, bundle), random_head(manifest, rng)
    values = method_adapter(bundle, graphs, absent, rng)
    off, base = forward.run({**inputs, **absent, **head}), {**inputs, **absent_adapter(manifest), **head}
    gaps = {name: _gap(off[name], y) for name, y in bundle.forward.run(base).items()}
    verdicts: list[PointVerdict] = []
    for point in manifest.trainable_in(graphs):
        own = {name: x for name, x in values.items() if name.rpartition(".")[0] == point.id}
        there = {**inputs, **absent, **head, **own}
        verdicts += [against_differences(bundle, point.id, there, {n: x}, rng, graphs) for n, x in own.items()]
    least = _LEAST * max((abs(v.analytic) for v in verdicts), default=0.0)
    slopes: dict[str, float] = {}
    for verdict in verdicts:
        if abs(verdict.analytic) > least or abs(verdict.numeric) > 10 * least:  # differences are less exact
            slopes[verdict.id] = max(slopes.get(verdict.id, 0.0), verdict.error)
    return gaps, slopes


def _tolerances(bundle: Bundle) -> tuple[float, float]:
    """What a graph's results may be from those of another, and from differences."""
    rounded = rounds_activations(bundle)
    return (ROUNDED_TOLERANCE, ROUNDED_TOLERANCE) if rounded else (SAME_TOLERANCE, GRADIENT_TOLERANCE)


def _farthest(same: float) -> float:
    """What a twin that is unsure may excuse at most, as a share of what is tolerated: as much as differences may."""
    return max(1.0, GRADIENT_TOLERANCE / same)


def _held(got: Feeds, expected: Feeds, floors: dict[str, float], same: float, again: Callable[[], Feeds]) -> Place:
    """What is returned at a place against what is expected; `again` is what is, from inputs that are rounded anew."""

    def gaps(other: Feeds) -> dict[str, float]:
        return {n: _gap(other[n], y, floors[n]) / same if n in other else LARGEST for n, y in expected.items()}

    return Place(gaps(got), lambda: _largest(gaps(again()) for _ in range(DRAWS)))


def _largest(several: Iterable[dict[str, float]]) -> dict[str, float]:
    """By name the largest."""
    found = dict[str, float]()
    for one in several:
        found |= {name: max(x, found.get(name, x)) for name, x in one.items()}
    return found


def _worst(file: str, shares: dict[str, Share], tolerance: Callable[[str], float]) -> GraphVerdict:
    """The verdict on a graph by errors that are shares of what is tolerated of each."""
    where = max(shares, key=lambda name: shares[name].exceeds)
    worst, unit = shares[where], tolerance(where)
    told = bounded(worst.error * unit), worst.allowed * unit, where, worst.exceeds <= 1
    return GraphVerdict(file, *told, bounded(worst.own * unit))


def method_adapter(bundle: Bundle, graphs: str, absent: Feeds, rng: np.random.Generator) -> Feeds:
    """A random adapter at every place of a set of graphs, whose neutral one is `absent`."""
    wide = {name: x if x.size else np.zeros([n or RANK for n in x.shape]) for name, x in absent.items()}
    values: Feeds = {name: x + _NEAR * _size(x) * rng.standard_normal(x.shape) for name, x in wide.items()}
    for point in bundle.manifest.points_in(graphs):
        if point.input_a in absent:
            values[point.input_a], b = random_pair(point, rng)
            values[point.input_b] = _NEAR * b
        if point.op in (EMBEDDING_OP, ATTENTION_OP):  # vectors of tokens, which are of that size from the beginning
            own = [name for name in wide if name.rpartition(".")[0] == point.id]
            values |= {name: rng.standard_normal(wide[name].shape) for name in own}
    return {name: x.astype(np.float32) for name, x in values.items()}


def _size(x: NDArray[Any]) -> float:
    """How far apart the values are; 1 where they are all the same."""
    return float(x.std()) or 1.0


def check_mixed(bundle: Bundle, file: str, inputs: Feeds, rng: np.random.Generator) -> GraphVerdict:
    """Rows with adapters of different ranks and heads, one of them absent, against the inference graph with each."""
    manifest, batch = bundle.manifest, bundle.manifest.inputs[0].shape[0]
    tolerance = ROUNDED_TOLERANCE if rounds_activations(bundle) else MIXED_TOLERANCE
    rows = np.arange(len(_MIXED_RANKS)) % len(inputs[manifest.inputs[0].name])
    given = {s.name: inputs[s.name][rows] if s.shape[:1] == (batch,) else inputs[s.name] for s in manifest.inputs}
    adapters: dict[Hashable, ActiveAdapter] = {}
    for number, rank in enumerate(_MIXED_RANKS):
        feeds: Feeds = absent_adapter(manifest) | random_head(manifest, rng, OUTPUTS + number)
        for point in manifest.points if rank else ():
            feeds[point.input_a], feeds[point.input_b] = random_pair(point, rng, rank)
            feeds[point.input_b] *= np.float32(CHANGE)
        adapters[number] = ActiveAdapter(feeds, None, manifest.head is not None)
    with AdapterStack(manifest, _MIXED_MEMORY).loaded(list(adapters), adapters) as stacked:
        if stacked is None:
            return GraphVerdict(file, LARGEST, tolerance, "adapters too large for a stack", False)
        mixed = bundle.graph(file).run({**given, **stacked})
    errors: dict[str, float] = {}
    by_row = [s.name for s in manifest.outputs if s.shape[:1] == (batch,)]
    for row, (rank, active) in enumerate(zip(_MIXED_RANKS, adapters.values(), strict=True)):
        alone = bundle.forward.run({**given, **active.feeds}, by_row)
        for name in by_row:
            wanted, got = alone[name][[row]], mixed[name][[row]]
            own = got if manifest.head is None else got[..., : wanted.shape[-1]]  # the rest is other rows' classes
            errors[f"{name} with rank {rank}"] = _gap(own, wanted)
    errors = errors or {"no output has rows": 0.0}
    where = max(errors, key=lambda name: errors[name])
    return GraphVerdict(file, bounded(errors[where]), tolerance, where, errors[where] <= tolerance)


def check_prefix(bundle: Bundle, prefix: Prefix, inputs: Feeds, rng: np.random.Generator) -> list[GraphVerdict]:
    """The graphs that go on from a prefix, against those of the whole model, with no adapter outside its points."""
    absent = absent_adapter(bundle.manifest)
    outside = [p for p in bundle.manifest.points if p.id not in prefix.points]
    none = {name: absent[name] for p in outside for name in (p.input_a, p.input_b)}
    not_trained = {f"grad.{name}" for name in none}
    kept = bundle.graph(prefix.file).run(inputs)
    first = whole_adapter(bundle, inputs, rng) | none

    def adapters() -> Iterator[tuple[Feeds, Feeds]]:
        yield {**inputs, **first}, kept
        while True:
            yield {**inputs, **whole_adapter(bundle, inputs, rng), **none}, kept

    def made(feeds: Feeds) -> Feeds:
        return bundle.forward.run(feeds)

    forward = bundle.graph(prefix.forward)
    verdicts = [_agreement(bundle, prefix.forward, adapters(), forward.run, made, rng)]
    for record in prefix.training:
        whole = bundle.training(record.loss, record.dropout)

        def places(whole: TrainingGraph = whole) -> Iterator[tuple[Feeds, Feeds]]:
            for given, kept in adapters():
                yield given, {**kept, **loss_feeds(bundle.manifest, whole, inputs, made(given), rng)}

        def expected(feeds: Feeds, whole: TrainingGraph = whole) -> Feeds:
            return {n: y for n, y in bundle.graph(whole.file).run(feeds).items() if n not in not_trained}

        def both(feeds: Feeds, expected: Callable[[Feeds], Feeds] = expected) -> Feeds:
            return {**expected(feeds), **made(feeds)}

        graph = bundle.graph(record.file)
        verdicts.append(_agreement(bundle, record.file, places(), graph.run, expected, rng))
        if (halves := record.halves) is not None:
            in_two = functools.partial(_in_two, bundle, halves)
            verdicts.append(_agreement(bundle, halves.backward, places(), in_two, both, rng))
    return verdicts


def check_recomputed(
    bundle: Bundle, record: TrainingGraph, file: str, inputs: Feeds, rng: np.random.Generator
) -> GraphVerdict:
    """A graph that recomputes against the plain one, under random masks."""

    def places() -> Iterator[tuple[Feeds, Feeds]]:
        while True:
            values = whole_adapter(bundle, inputs, rng)
            feeds, _ = _place(bundle, record, inputs, values, rng)
            yield {**inputs, **values}, {**feeds, **_masks(record, feeds, rng)}

    return _agreement(bundle, file, places(), bundle.graph(file).run, bundle.graph(record.file).run, rng)


def check_halves(
    bundle: Bundle, record: TrainingGraph, halves: Halves, inputs: Feeds, rng: np.random.Generator, graphs: str
) -> GraphVerdict:
    """Both halves, one after the other, against the inference graph and the whole training graph of a set of graphs."""
    forward, whole = bundle.forward_in(graphs), bundle.graph(record.file)

    def places() -> Iterator[tuple[Feeds, Feeds]]:
        while True:
            values = _values(bundle, graphs, inputs, rng)
            yield {**inputs, **values}, _place(bundle, record, inputs, values, rng, graphs)[0]

    def expected(feeds: Feeds) -> Feeds:
        return {**whole.run(feeds), **forward.run(feeds)}

    in_two = functools.partial(_in_two, bundle, halves)
    return _agreement(bundle, halves.backward, places(), in_two, expected, rng)


def _in_two(bundle: Bundle, halves: Halves, feeds: Feeds) -> Feeds:
    """What both halves return, one after the other."""
    first = bundle.graph(halves.forward).run(feeds)
    return {**first, **bundle.graph(halves.backward).run({**feeds, **{name: first[name] for name in halves.kept}})}


def _agreement(
    bundle: Bundle,
    file: str,
    places: Iterator[tuple[Feeds, Feeds]],
    got: Callable[[Feeds], Feeds],
    expected: Callable[[Feeds], Feeds],
    rng: np.random.Generator,
) -> GraphVerdict:
    """How far what a graph returns is from all that is expected, at `places`.

    A place is the inputs with an adapter, which are known to a rounding, and what graphs take beside.
    """
    same, _ = _tolerances(bundle)

    def at_a_place() -> Place:
        given, beside = next(places)
        feeds = {**beside, **given}
        ours, theirs = got(feeds), expected(feeds)

        def again() -> Feeds:
            return expected({**feeds, **moved(given, rng)})

        return _held(ours, theirs, _floors(theirs, feeds), same, again)

    return _worst(file, least_shares(at_a_place, _farthest(same)), lambda _: same)


def _expected(
    bundle: Bundle, record: TrainingGraph, feeds: Feeds, made: Feeds, graphs: str = LORA_GRAPHS
) -> tuple[Feeds, dict[str, float]]:
    """What a graph must return for `feeds`, masks of ones among them; nothing for a loss without a reference.

    And lengths below which a gradient's error is rounding: of the head's bias, whose gradient is a sum of cotangents
    that may be nothing but what float32 leaves of them, as where a loss is the same for any constant.
    """
    if bundle.manifest.language is not None:
        return {}, {}
    twin = bundle.graph(bundle.training("cotangent", dropout=False, graphs=graphs).file)
    if record.loss == "cotangent":
        return twin.run(feeds), {}
    if record.loss not in REFERENCES:
        return {}, {}
    ((name, y),) = made.items()
    loss, dy = REFERENCES[record.loss](y.astype(np.float64), feeds)
    head = bundle.manifest.head
    noise = {} if head is None else {f"grad.{head.bias}": _ROUNDED * float(np.abs(dy).sum())}
    return {"loss": np.asarray(loss), **twin.run({**feeds, f"cotangent.{name}": dy.astype(np.float32)})}, noise


def _floors(expected: Feeds, feeds: Feeds) -> dict[str, float]:
    """By name a length as of which an error counts, if what is expected is shorter: there it may be rounding.

    Of a gradient, where it is less than a thousandth of the longest, and its tensor would move the loss by less than a
    thousandth of what the one that moves it most would, each by its own length: a small B has long gradients and makes
    those of its A short, which are known as well. Of outputs and a loss it is what a check sees of them (probes.py).
    """
    lengths = {name: float(np.linalg.norm(y)) for name, y in expected.items() if name.startswith("grad.")}
    sizes = {name: _length(feeds[name.removeprefix("grad.")]) for name in lengths}
    longest = max(lengths.values(), default=0.0)
    most = max((length * sizes[name] for name, length in lengths.items()), default=0.0)
    others = loudness({name: y for name, y in expected.items() if name not in lengths})
    return {name: _ROUNDED * min(longest, most / size) for name, size in sizes.items()} | others


def _length(x: NDArray[Any]) -> float:
    """A tensor's norm; of zeros, that of ones."""
    return float(np.linalg.norm(x)) or float(x.size) ** 0.5


def _gap(got: NDArray[Any], wanted: NDArray[Any], least: float = 1e-6) -> float:
    """The norm of the difference relative to the norm of what is wanted, or to `least`."""
    if got.shape != wanted.shape:
        return LARGEST
    gap = float(np.linalg.norm(np.asarray(got, np.float64) - wanted))
    return bounded(gap / max(float(np.linalg.norm(np.asarray(wanted, np.float64))), least, 1e-6))
