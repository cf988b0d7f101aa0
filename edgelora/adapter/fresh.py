"""A fresh adapter, and the names that its classes may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgelora.adapter.adapter import Adapter, length_problems
from edgelora.config import AdapterConfig
from edgelora.errors import ConfigError
from edgelora.manifest import Manifest
from edgelora.methods import UNKNOWN, BaseValues, method_of, no_graphs
from edgelora.targets import select_points
from edgelora.unicode import NOT_UNICODE, is_unicode


def new_adapter(
    manifest: Manifest,
    config: AdapterConfig,
    labels: tuple[str, ...] | None = None,
    outputs: int | None = None,
    rng: np.random.Generator | None = None,
    base: BaseValues = UNKNOWN,
) -> Adapter:
    """A fresh adapter with PEFT's initialisation (LoRA: A uniform in ±1/√(inputs of an output), B zero); the head's
    weight N(0, 0.02), its bias zero.

    The head has a row per label behind its leading ones, or `outputs` rows. `rng` draws the values (default: seed 0).
    Methods that ask the base, as DoRA does, need `base=bundle`.

    Raises:
        ConfigError: a pattern matches nothing, the settings do not suit a point, the bundle has no graphs for the
            method, or the head needs labels and there are none, or bad ones.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    problems = label_problems(labels or ())
    if problems:
        raise ConfigError("; ".join(problems))
    method = method_of(config)
    if manifest.graph_set(method.graphs) is None:
        raise ConfigError(no_graphs(method))
    points = select_points(manifest.points_in(method.graphs), config)
    if problems := [*method.problems(config, {}, points), *length_problems(manifest, config, points)]:
        raise ConfigError("\n".join(problems))
    tensors = method.new(config, points, rng, base)
    if manifest.head is not None:
        rows = manifest.head.leading + len(labels) if labels is not None else outputs
        if not rows:
            raise ConfigError("a new head needs its labels, or its number of outputs")
        weight = rng.standard_normal((rows, manifest.head.features)).astype(np.float32) * np.float32(0.02)
        tensors |= {manifest.head.weight: weight, manifest.head.bias: np.zeros(rows, np.float32)}
        config = replace(config, modules_to_save=(manifest.head.name,))
    return Adapter(config, tensors, manifest.base_digest, manifest.task, manifest.name, labels)


def label_problems(labels: Sequence[str]) -> list[str]:
    """What is wrong with the names of classes: blank, given twice, or not valid Unicode."""
    problems = [f"the label {label!r} is blank" for label in labels if not label.strip()]
    problems += [f"the label {label!r} is given {n} times" for label, n in Counter(labels).items() if n > 1]
    return problems + [f"the label {label!r} is {NOT_UNICODE}" for label in labels if not is_unicode(label)]
