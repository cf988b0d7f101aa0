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
_LOUDEST = 64.0

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

    A point that hardly shows (a query where attention is flat) is turned up, as far as that helps.
    """
    off = bundle.forward.run(base)

    def change(factor: float) -> float:
        scaled = {n: x * np.float32(factor) if n.endswith(".lora_B") else x for n, x in values.items()}
        on = bundle.forward.run({**base, **scaled})
        return max(float(np.linalg.norm(on[n] - off[n]) / (np.linalg.norm(off[n]) + 1e-12)) for n in off)

    factor, seen = 1.0, change(1.0)
    while 0 < seen < CHANGE / 4 and factor < _LOUDEST:
        factor *= 4
        seen = change(factor)
    return np.float32(factor * min(1.0, CHANGE / max(seen, 1e-6)))


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
