"""What a training begins from: the classes, the settings, the adapter and the budget, where they are not told."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgelora.adapter import Adapter, new_adapter
from edgelora.config import AdapterConfig, LoraConfig
from edgelora.errors import ConfigError
from edgelora.manifest import BIAS_OP, LORA_GRAPHS, Manifest, Prefix
from edgelora.memory import resident_memory
from edgelora.methods import UNKNOWN, BaseValues, method_of, no_prefix
from edgelora.prefix_cache import chosen_prefix
from edgelora.runtime import Model
from edgelora.samples import Sample
from edgelora.targets import select_points
from edgelora.tasks import task_named
from edgelora.training_config import TrainingConfig


def merged_labels(manifest: Manifest, current: Adapter | None, samples: Sequence[Sample]) -> tuple[str, ...] | None:
    """The classes: the base's where it has its own, else those of the adapter that exists, then the data's new ones.

    Raises:
        ConfigError: fewer classes than the task needs.
    """
    task = task_named(manifest.task)
    if not task.has_classes:
        return None
    if manifest.detector is not None and manifest.detector.labels:
        return manifest.detector.labels
    known = () if current is None or current.labels is None else current.labels
    labels = (*known, *(label for label in task.classes(samples) if label not in known))
    if len(labels) < task.least_classes:
        named = "no class" if not labels else f"{len(labels)} class ({', '.join(labels)})"
        raise ConfigError(f"the data names {named}: {task.name} needs {task.least_classes} or more")
    return labels


def chosen_lora(
    manifest: Manifest, current: Adapter | None, asked: AdapterConfig | None, config: TrainingConfig | None = None
) -> AdapterConfig:
    """The adapter's settings: those that exist, else those asked for, else rank 8 on the bundle's points.

    An adapter that is a head alone takes those asked for: it gets points beside its head.

    Where no points are asked for, they are those that have a gradient, or with "spsa" all. With `train_last` they are
    of the last layers.

    Raises:
        ConfigError: what is asked for differs from the adapter that exists, or leaves no point; the bundle cannot train
            the last layers alone.
    """
    config = config or TrainingConfig()
    prefix = chosen_prefix(manifest, config.train_last)
    if asked is not None and prefix is not None:
        asked = in_last_layers(manifest, asked, prefix)
    if current is None or (asked is not None and asked.target_modules != () and _is_head_alone(manifest, current)):
        wanted = asked or LoraConfig(r=8, lora_alpha=16)
        graphs = method_of(wanted).graphs
        places = [point for point in manifest.points_in(graphs) if point.op != BIAS_OP]
        reached = tuple(point.id for point in manifest.trainable_in(graphs) if point.op != BIAS_OP)
        all_reached = len(reached) == len(places)
        if wanted.target_modules is None and config.gradient == "backward" and not all_reached:
            wanted = replace(wanted, target_modules=reached)
        return wanted if prefix is None else in_last_layers(manifest, wanted, prefix)
    existing = replace(current.config, modules_to_save=None)  # the head is the task's, not a setting
    if asked is not None and asked.saved() != existing:
        theirs, ours = ({"method": one.peft_type, **one.to_dict()} for one in (existing, asked.saved()))
        differing = [f"{k} {theirs.get(k)} against {v}" for k, v in ours.items() if theirs.get(k) != v]
        raise ConfigError(
            f"the adapter exists with other settings ({'; '.join(differing)}): leave them out to train it further, "
            "or add --restart to begin anew"
        )
    return existing


def in_last_layers(manifest: Manifest, lora: AdapterConfig, prefix: Prefix) -> AdapterConfig:
    """The settings, narrowed to the points behind the prefix: by PEFT's `layers_to_transform` where that says it.

    Raises:
        ConfigError: none of the points that they name stands there, or the method has no graphs after a prefix.
    """
    method = method_of(lora)
    if method.graphs != LORA_GRAPHS:
        raise ConfigError(no_prefix(method))
    points = manifest.points_in(method.graphs)
    named = select_points(points, lora)
    kept = tuple(point for point in named if point.id in prefix.points)
    if len(kept) == len(named):
        return lora
    if not kept:
        raise ConfigError(f"none of the points that are asked for stands in the layers that {prefix.name} trains")
    layers = tuple(sorted({point.layer for point in kept if point.layer is not None}))
    narrowed = replace(lora, layers_to_transform=layers)
    with contextlib.suppress(ConfigError):
        if layers and select_points(points, narrowed) == kept:
            return narrowed
    ids = tuple(point.id for point in kept)
    return replace(lora, target_modules=ids, exclude_modules=None, layers_to_transform=None)


def starting_adapter(
    manifest: Manifest,
    current: Adapter | None,
    lora: AdapterConfig,
    labels: tuple[str, ...] | None,
    samples: Sequence[Sample],
    seed: int,
    base: BaseValues = UNKNOWN,
) -> Adapter:
    """A fresh adapter, or the current one with rows in its head for new labels and, if it is a head alone, `lora`.

    Raises:
        ConfigError: the current one has a head of classes that have no names.
    """
    fresh = new_adapter(
        manifest,
        lora,
        labels=labels,
        outputs=task_named(manifest.task).outputs(samples),
        rng=np.random.default_rng(seed),
        base=base,
    )
    if current is None:
        return fresh
    if _is_head_alone(manifest, current):
        current = replace(current, config=fresh.config, tensors={**fresh.tensors, **current.tensors})
    tensors, settings, head = dict(current.tensors), current.config, manifest.head
    if head is not None and head.weight not in tensors:  # imported without one
        tensors |= {name: fresh.tensors[name] for name in (head.weight, head.bias)}
        settings = replace(settings, modules_to_save=(head.name,))
    elif head is not None and labels is not None:
        if current.labels is None:
            raise ConfigError("the adapter's head has classes without names: add --restart to begin anew")
        for name in (head.weight, head.bias):
            tensors[name] = np.concatenate([tensors[name], fresh.tensors[name][len(tensors[name]) :]])
    return replace(current, config=settings, tensors=tensors, labels=labels)


def _is_head_alone(manifest: Manifest, adapter: Adapter) -> bool:
    head = manifest.head
    return head is not None and set(adapter.tensors) == {head.weight, head.bias}


def before_training(
    model: Model,
    name: str,
    samples: Sequence[Sample],
    lora: AdapterConfig | None,
    config: TrainingConfig,
    restart: bool = False,
) -> Adapter:
    """What a training of the adapter `name` begins from: its current version with rows for new labels, or a fresh one.

    Raises:
        as `train` does of the settings and the labels.
    """
    manifest = model.bundle.manifest
    current = None if restart or not model.store.exists(name) else model.store.load(name)
    labels, lora = merged_labels(manifest, current, samples), chosen_lora(manifest, current, lora, config)
    return starting_adapter(manifest, current, lora, labels, samples, config.seed, model.bundle)


def identity_of(adapter: Adapter) -> str:
    """What a run that starts from this adapter depends on: its run, or its bytes if it was imported."""
    known = adapter.training.get("run_id")
    if isinstance(known, str):
        return known
    content = b"".join(name.encode() + adapter.tensors[name].tobytes() for name in sorted(adapter.tensors))
    return hashlib.sha256(content).hexdigest()


def default_budget(manifest: Manifest, config: TrainingConfig) -> int | None:
    """The bundle's budget in bytes; None if it has none, or it cannot be kept.

    That is so on some systems, and after a prefix of an older bundle, which does not tell what its graphs need.
    """
    if manifest.budget is None or resident_memory() is None:
        return None
    prefix = chosen_prefix(manifest, config.train_last, config.cache is not None)
    return None if prefix is not None and prefix.file not in manifest.memory else manifest.budget.bytes
