"""What a check feeds the graphs: random adapters and heads, and values for the further inputs of a training graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.dimensions import evaluate_dimension
from edgelora.manifest import InsertionPoint, Manifest, TrainingGraph

OUTPUTS = 3  # of a random head
CHANGE = 0.1  # of the outputs by a random adapter
RANK = 4  # of a random adapter
_LOUDEST, _TURNS = 64.0, 12
_SHUT = 1e-2

Feeds = dict[str, NDArray[Any]]


def whole_adapter(bundle: Bundle, inputs: Feeds, rng: np.random.Generator) -> Feeds:
    """A random adapter at every point and a random head; together they change the outputs by a tenth."""
    manifest = bundle.manifest
    values: Feeds = {}
    for point in manifest.points:
        values[point.input_a], values[point.input_b] = random_pair(point, rng)
    head = random_head(manifest, rng)
    factor = gentle_factor(bundle, {**inputs, **absent_adapter(manifest), **head}, values)
    for point in manifest.points:
        values[point.input_b] *= factor
    return {**values, **head}


def random_pair(point: InsertionPoint, rng: np.random.Generator, rank: int = RANK) -> tuple[NDArray[Any], NDArray[Any]]:
    """A random A and B for a point, of `rank` rounded up to a multiple of its groups; products keep the size of x."""
    rank = -(-rank // point.groups) * point.groups
    inputs, inner = point.in_features * math.prod(point.kernel), rank // point.groups
    a = rng.standard_normal(point.shape_a(rank)).astype(np.float32) / np.float32(inputs**0.5)
    b = rng.standard_normal(point.shape_b(rank)).astype(np.float32) / np.float32(inner**0.5)
    return a, b


def random_head(manifest: Manifest, rng: np.random.Generator, outputs: int = OUTPUTS) -> Feeds:
    """A random head, if the task has one."""
    head = manifest.head
    if head is None:
        return {}
    weight = rng.standard_normal((outputs, head.features)).astype(np.float32) / np.float32(head.features**0.5)
    return {head.weight: weight, head.bias: rng.standard_normal(outputs).astype(np.float32)}


def gentle_factor(bundle: Bundle, base: Feeds, values: Feeds) -> np.float32:
    """A factor for every B at which the adapter changes the outputs by a tenth: well seen and still smooth.

    A point that hardly shows (a query where attention is flat) is turned up, as far as that helps, and turned round
    where only that does: a sigmoid that is shut can be opened and not shut further.
    """
    off = bundle.forward.run(base)
    least = loudness(off)

    def change(factor: float) -> float:
        scaled = {n: x * np.float32(factor) if n.endswith(".lora_B") else x for n, x in values.items()}
        on = bundle.forward.run({**base, **scaled})
        return max(float(np.linalg.norm(on[n].astype(np.float64) - off[n]) / least[n]) for n in off)

    def turned(sign: float) -> tuple[float, float]:
        factor, seen, quiet, loud = 1.0, change(sign), 0.0, 0.0
        for _ in range(_TURNS):
            if not seen <= 1.5 * CHANGE:  # in proportion first; what opens a sigmoid changes by powers
                loud = factor
                factor *= CHANGE / seen if 0 < seen < math.inf else 1 / 16
                factor = math.sqrt(quiet * loud) if quiet else factor
            elif seen < CHANGE / 4 and factor < _LOUDEST:
                quiet = factor
                factor = math.sqrt(quiet * loud) if loud else 4 * factor
            else:
                break
            seen = change(sign * factor)
        return sign * factor, seen

    factor, seen = turned(1.0)
    if seen < CHANGE / 4:
        factor, seen = max((factor, seen), turned(-1.0), key=lambda one: one[1])
    return np.float32(factor * min(1.0, CHANGE / max(seen, 1e-6)))


def random_cotangents(outputs: Feeds, rng: np.random.Generator) -> Feeds:
    """Standard normal weights of outputs; those of a quiet output are louder, that no other drowns it."""
    loud = loudness(outputs)
    loudest = max(loud.values())
    return {
        n: rng.standard_normal(y.shape).astype(np.float32) * np.float32(loudest / loud[n]) for n, y in outputs.items()
    }


def loudness(outputs: Feeds) -> dict[str, float]:
    """The norm of each output, and at least of numbers of a hundredth.

    Of a sigmoid or softmax that is shut float32 leaves a digit or none: what changes it by a tenth is not to be seen.
    """
    return {n: max(float(np.linalg.norm(y)), _SHUT * y.size**0.5, 1e-12) for n, y in outputs.items()}


def loss_feeds(
    manifest: Manifest, record: TrainingGraph, inputs: Feeds, outputs: Feeds, rng: np.random.Generator
) -> Feeds:
    """Values for what a training graph takes beside the model's inputs and the adapter: masks of ones, labels, …"""
    sizes = {str(d): n for s in manifest.inputs for d, n in zip(s.shape, inputs[s.name].shape, strict=True)}
    sizes |= {str(d): n for s in manifest.outputs for d, n in zip(s.shape, outputs[s.name].shape, strict=True)}
    rows = len(next(iter(outputs.values())))
    sizes["pairs"] = rows
    made: Feeds = {}
    for spec in record.inputs:
        shape = [evaluate_dimension(d, sizes) for d in spec.shape]
        if spec.name in ("anchors", "positives", "negatives"):
            made[spec.name] = (np.arange(rows) + ("anchors", "positives", "negatives").index(spec.name)) % rows
        elif spec.name == "labels":
            made[spec.name] = rng.integers(0, OUTPUTS, shape)
        elif spec.name == "loss_weight":
            some = rng.random(shape) < 0.7 if len(shape) > 1 else 1.0  # of tokens, not all have a label
            made[spec.name] = (some * rng.uniform(0.5, 1.5, shape) / np.prod(shape)).astype(np.float32)
        elif spec.name in ("margin", "inverse_temperature"):
            made[spec.name] = np.asarray(4.0, np.float32)
        elif spec.dtype == "uint8":
            made[spec.name] = np.ones(shape, np.uint8)
        else:
            made[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return made
