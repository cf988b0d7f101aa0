"""Parity: the outputs of a bundle without adapter against those of its source, on samples recorded at conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

from edgelora.adapter import absent_adapter
from edgelora.bundle import Bundle
from edgelora.errors import BundleError
from edgelora.manifest import Manifest
from edgelora.probes import Feeds, random_head
from edgelora.slopes import LARGEST, bounded

PARITY_FILE, WRITTEN = "parity.safetensors", "written"
COLOURS = (1, 3, 4)  # how many an axis of a picture may hold
PARITY_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": 1e-1, "int4": 2e-1}
SPREADS = 3  # the largest of a few differences, and both sets may err in one direction
_FARTHEST = PARITY_TOLERANCE["float16"]  # sums in another order are not less exact than half precision


def parity_tolerance(manifest: Manifest, output: str) -> float:
    """How far from its source an output may be, relative to the largest value: by the coarser arithmetic of the two.

    A source whose two ways to compute are apart is not known better than that: three times as far is allowed, but never
    further than a source in half precision. Kernels further apart compute something else, not the same otherwise.
    """
    source = manifest.source
    ours = PARITY_TOLERANCE[source.get("precision", "float32")]
    theirs = PARITY_TOLERANCE[source.get("source_precision", "float32")]
    return max(ours, theirs, min(_FARTHEST, SPREADS * source_spread(manifest, output)))


def source_spread(manifest: Manifest, output: str) -> float:
    """How far apart the source's own two ways to compute are at an output, relative to the largest value; 0 for one.

    What a task makes of the source's outputs is known as badly as the worst of them.
    """
    spread: dict[str, float] = manifest.source.get("spread", {})
    return spread.get(output, max(spread.values(), default=0.0))


def parity_samples(bundle: Bundle) -> list[tuple[Feeds, Feeds]]:
    """Random inputs and the source's outputs for them, recorded at conversion."""
    return [sample for number, sample in _recorded(bundle).items() if number != WRITTEN]


def written_sample(bundle: Bundle) -> tuple[Feeds, Feeds] | None:
    """The same of the text that the source wrote, where it is a language model that was quantized at conversion."""
    return _recorded(bundle).get(WRITTEN)


def _recorded(bundle: Bundle) -> dict[str, tuple[Feeds, Feeds]]:
    path = bundle.path / PARITY_FILE
    try:
        arrays = load_file(path)
    except Exception as error:
        raise BundleError(f"{path}: cannot be read ({error}); convert the model again") from error
    samples: dict[str, tuple[Feeds, Feeds]] = {}
    for key, array in arrays.items():
        number, side, name = key.split("/", 2)
        samples.setdefault(number, ({}, {}))[side == "out"][name] = array
    return {number: samples[number] for number in sorted(samples)}


def parity_errors(
    bundle: Bundle, samples: Sequence[tuple[Feeds, Mapping[str, NDArray[Any]]]], rng: np.random.Generator
) -> dict[str, float]:
    """For each output the largest difference between the bundle without adapter and the source; see `differences`.

    A new head has no counterpart in the source: a random one is applied to the source's pooled output here.
    """
    pairs: list[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]] = []
    for inputs, source in samples:
        head = random_head(bundle.manifest, rng)
        ours = bundle.forward.run({**inputs, **absent_adapter(bundle.manifest), **head})
        pairs.append((ours, expected_outputs(bundle.manifest, inputs, source, head)))
    return differences(pairs)


def differences(
    pairs: Sequence[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]],
) -> dict[str, float]:
    """For each output the largest difference in pairs of what was got and what is wanted, by what is wanted at most."""
    gaps, scales = dict[str, float](), dict[str, float]()
    for ours, theirs in pairs:
        for name, y in theirs.items():
            wanted, got = np.asarray(y, np.float64), np.asarray(ours[name], np.float64)
            gap = float(np.abs(got - wanted).max(initial=0.0)) if got.shape == wanted.shape else LARGEST
            gaps[name] = max(gaps.get(name, 0.0), bounded(gap))
            scales[name] = max(scales.get(name, 0.0), float(np.abs(wanted).max(initial=0.0)))
    return {name: LARGEST if gap == LARGEST else bounded(gap / (scales[name] or 1.0)) for name, gap in gaps.items()}


def expected_outputs(
    manifest: Manifest, inputs: Feeds, source: Mapping[str, NDArray[Any]], head: Feeds
) -> dict[str, NDArray[Any]]:
    """The task's outputs from the source's, in float64 numpy."""
    if manifest.task in ("feature-extraction", "text-generation") or (
        manifest.detector is not None and manifest.head is None
    ):
        return {spec.name: source[spec.name] for spec in manifest.outputs}
    (base,) = source.values()
    base = base.astype(np.float64)
    if manifest.head is not None and manifest.head.per == "pixel":
        return {"logits": _of_maps(manifest, base, head, inputs)}
    pooling = manifest.source.get("pooling", "mean")
    if pooling == "flatten" and manifest.task != "token-classification":
        base = base.reshape(len(base), -1)
    elif manifest.task != "token-classification" and base.ndim == 4:
        base = base.mean((2, 3))
    elif manifest.task != "token-classification" and base.ndim == 3:
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


def _of_maps(manifest: Manifest, maps: NDArray[np.float64], head: Feeds, inputs: Feeds) -> NDArray[np.float64]:
    """A head's logits `[batch, outputs, h, w]` at every place of the maps, or at the picture's size if it has that."""
    assert manifest.head is not None
    picture = next((spec for spec in manifest.inputs if len(spec.shape) == 4), None)
    weight, bias = (head[name].astype(np.float64) for name in (manifest.head.weight, manifest.head.bias))
    logits = np.einsum("oc,nchw->nohw", weight, maps) + bias[:, None, None]
    if picture is None:
        return logits
    axes = slice(1, 3) if picture.shape[3] in COLOURS and picture.shape[1] not in COLOURS else slice(2, 4)
    if picture.shape[axes] != manifest.outputs[0].shape[2:]:
        return logits
    height, width = inputs[picture.name].shape[axes]
    return interpolation(height, logits.shape[2]) @ logits @ interpolation(width, logits.shape[3]).T


def interpolation(size: int, of: int) -> NDArray[np.float64]:
    """The matrix `[size, of]` that enlarges an axis bilinearly, between the centres of places (ONNX's half_pixel)."""
    at = np.clip((np.arange(size) + 0.5) * of / size - 0.5, 0, of - 1)
    below, matrix = np.floor(at).astype(np.int64), np.zeros((size, of))
    np.add.at(matrix, (np.arange(size), below), 1 - (at - below))
    np.add.at(matrix, (np.arange(size), np.minimum(below + 1, of - 1)), at - below)
    return matrix
