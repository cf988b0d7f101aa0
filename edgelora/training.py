"""Train or continue a named adapter: lock, run, publish a new version. What `edgelora train` calls."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from edgelora.adapter import Adapter, new_adapter, settings_field
from edgelora.config import AdapterConfig, LoraConfig
from edgelora.errors import AdapterError, ConfigError
from edgelora.files import remove_tree
from edgelora.gate import Gate, Verdict, judge
from edgelora.manifest import BIAS_OP, LORA_GRAPHS, Manifest, Prefix
from edgelora.memory import resident_memory
from edgelora.memory_layout import read_layout, write_layout
from edgelora.memory_plan import MemoryPlan, follow, plan_memory
from edgelora.methods import UNKNOWN, BaseValues, method_of, no_prefix
from edgelora.prefix_cache import chosen_prefix
from edgelora.runtime import Model
from edgelora.samples import Sample, digest
from edgelora.targets import select_points
from edgelora.tasks import objective_for, task_named
from edgelora.trainer import Trainer, trained_tensors
from edgelora.training_checks import check_targets
from edgelora.training_clock import read_began, told_the_time, write_began
from edgelora.training_config import TrainingConfig
from edgelora.training_run import Callback, RunResult, finish, fit, run_id
from edgelora.training_state import STATE_FILE, Progress, StateFile, unfinished

OF_BUNDLE = "the bundle's --ram"


@dataclass(frozen=True)
class TrainingReport:
    """What `train` did. `already_done` when this very run had been finished before and nothing was trained.

    `version` is the adapter's in the store, `steps` the updates of the whole run, `resumed_at` the step at
    which this call went on (0: from the start), `seconds` the run's, earlier calls included, and
    `step_seconds_median` of this call's steps (None if there was none). `history` has a mapping per epoch:
    `epoch` from 1, `train_loss` and, with validation samples, `eval_loss` and the task's metrics as `eval_…`.
    `best_epoch` is the one with the best metric, None without validation samples. `memory` is how the run was laid
    out, if there was a budget. `gate` is what the gate found, if there was one: `version` is current unless it was not
    accepted. `notes` say what the settings made otherwise than one might expect.
    """

    adapter: str
    version: int
    steps: int
    resumed_at: int
    seconds: float
    step_seconds_median: float | None
    history: tuple[dict[str, float], ...]
    best_epoch: int | None
    stopped_early: bool
    already_done: bool
    trainable_parameters: int
    labels: tuple[str, ...] | None
    memory: MemoryPlan | None = None
    gate: Verdict | None = None
    notes: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether the version is current."""
        return self.gate is None or self.gate.accepted

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        nested = {name: getattr(self, name) for name in ("memory", "gate")}
        return (
            dataclasses.asdict(self)
            | {name: None if value is None else value.to_dict() for name, value in nested.items()}
            | {"active": self.active}
        )


def train(
    model: Model,
    name: str,
    samples: Sequence[Sample],
    validation: Sequence[Sample] | None = None,
    lora: AdapterConfig | None = None,
    config: TrainingConfig | None = None,
    restart: bool = False,
    again: bool = False,
    discard: bool = False,
    callback: Callback = lambda _step, _progress: None,
    ram: int | None = None,
    planned: Callable[[MemoryPlan], None] = lambda _plan: None,
    gate: Gate | None = None,
) -> TrainingReport:
    """Train the adapter `name` on `samples` and save it as a new version.

    An adapter that exists is trained further, an unfinished run is continued, and a run that is already
    finished is left alone unless `again`. `discard` drops an unfinished run, unless it is this very one;
    `restart` also begins from a fresh adapter. The run's state lies in the store and survives a kill at any
    instant.

    `ram` is a budget in bytes for this process's resident memory: the run is laid out to stay within it
    (memory_plan.py), with the same gradients up to the order of sums. `planned` is told how, before the work. None
    takes the budget of the bundle, if it has one, where it can be kept; 0 is none.

    With a `gate` the new version becomes current only if it is not worse, on the gate's samples, than the version
    before and than the base; otherwise it is saved, the one before stays current, and the report says why.

    `lora` are the settings of a new adapter, of any method (default: LoRA of rank 8, alpha 16, all of the bundle's
    points), `callback` is called after every step. Classes are the labels of the samples, after those that the adapter
    knows.

    Raises:
        ConfigError: settings that contradict the bundle, the data or the adapter that exists, or a `ram` in which
            nothing fits.
        TrainingError: the loss diverged, or an unfinished run has other data or settings.
        StoreError: another process trains this adapter, or the store cannot be written.
        DataError: the gate's samples have labels that the adapter does not learn.
        BundleError: a file of the bundle is altered.
    """
    manifest, config = model.bundle.manifest, config or TrainingConfig()
    given, ram = ram, default_budget(manifest, config) if ram is None else ram or None
    if config.early_stopping_patience is not None and not validation:
        raise ConfigError("early_stopping_patience needs validation samples to judge by")
    if model.store.key is not None and config.cache == "disk" and chosen_prefix(manifest, config.train_last, True):
        raise ConfigError(
            'a store with a key keeps no cache on the disk, where it would not be encrypted: take "memory"'
        )
    model.bundle.verified()
    with model.store.lock(name):
        current = None if restart or not model.store.exists(name) else model.store.load(name)
        labels = merged_labels(manifest, current, samples)
        asked, lora = lora, chosen_lora(manifest, current, lora, config)
        settings = {settings_field(lora): lora.to_dict(), "training": config.decisive(), "labels": labels}
        decisive = {
            "base": manifest.base_digest,
            "data": digest(samples),
            "validation": digest(validation) if validation else None,
            **settings,
            **({} if ram is None else {"ram": ram}),
        }
        if current is not None and not again:
            first = chosen_lora(manifest, None, asked, config)  # PiSSA's run had others than the adapter has
            runs = (decisive, {**decisive, settings_field(first): first.to_dict()})
            if current.training.get("run_id") in [run_id(**r, parent=current.training.get("parent")) for r in runs]:
                return _report(
                    name, model.store.current_version(name), current, _recorded(current), config, already_done=True
                )
        parent = None if current is None else identity_of(current)
        identity = run_id(**decisive, parent=parent)
        start = starting_adapter(manifest, current, lora, labels, samples, config.seed, model.bundle)
        folder = model.store.state_path(name)
        owner = unfinished(folder, model.store.key)
        continued = owner == identity
        began = (read_began(folder, identity) if continued else None) or datetime.now()
        at_that_time = told_the_time(model, began)
        reading = at_that_time or model
        objective = objective_for(reading, samples, start.labels, config)
        held_out = objective_for(reading, validation, start.labels, config) if validation else None
        judged = objective_for(reading, gate.samples, start.labels, config) if gate is not None else None
        if judged is not None:
            check_targets(manifest, start, judged)
        for data in (objective, held_out, judged):
            if data is not None:
                data.examine()
        model.store.make_room()
        trainer = Trainer(model.bundle, start, objective, config, folder)
        usable = continued and unfinished(folder, model.store.key, trainer) == identity
        plan = None
        if ram is not None:
            origin = "--ram" if given else OF_BUNDLE
            evaluated = [one for one in (held_out, judged) if one is not None]
            longest = max(evaluated, key=lambda one: int(one.lengths().max()), default=None)
            plan = plan_memory(trainer, longest, ram, read_layout(folder, identity) if continued else None, origin)
        if ((restart or discard) and not usable) or (owner is not None and owner == parent):
            remove_tree(folder)  # discarded, or what a finished run had no time to remove
        held_back = None if again else _held_back(model, name, identity)
        before = model.bundle.settings
        try:
            if owner in (None, identity) or not folder.exists():  # else `fit` refuses: the state is another run's
                if at_that_time is not None:
                    write_began(folder, identity, began)
                if plan is not None:
                    write_layout(folder, plan.layout, identity)
            if plan is not None:
                planned(plan)
                follow(plan, trainer)
            if held_back is None:
                result = fit(trainer, held_out, StateFile(folder, identity, model.store.key), callback)
            else:
                steps = int(held_back.training["steps"])
                result = RunResult(held_back, _recorded(held_back), steps, ())
            adapter = finish(result, identity, parent, settings)
            verdict = None
            if gate is not None and judged is not None:
                previous = model.store.load(name) if model.store.exists(name) else None
                fresh = starting_adapter(manifest, None, lora, labels, samples, config.seed, model.bundle)
                verdict = judge(model, gate, judged, trainer.part_size, adapter, previous, fresh)
        finally:
            if model.bundle.settings != before:
                model.bundle.use_settings(before)
        version = model.store.save(name, adapter, activate=verdict is None or verdict.accepted)
        trainer.close()
        if config.keep_cache:
            (folder / STATE_FILE).unlink(missing_ok=True)
        else:
            remove_tree(folder)
    report = _report(name, version, adapter, result.progress, config, already_done=held_back is not None)
    median = float(np.median(result.step_seconds)) if result.step_seconds else None
    return replace(
        report,
        resumed_at=result.resumed_at,
        step_seconds_median=median,
        memory=plan,
        gate=verdict,
        notes=_notes(manifest, trainer, config),
    )


def _notes(manifest: Manifest, trainer: Trainer, config: TrainingConfig) -> tuple[str, ...]:
    """What augmentation costs where the bundle could have kept the prefix's values."""
    could = chosen_prefix(manifest, config.train_last, keeps=True) is not None
    if not (trainer.augmented and could and config.cache is not None):
        return ()
    return ("augmented samples are others in each epoch: the frozen layers ran at every step, and nothing was kept",)


def _held_back(model: Model, name: str, identity: str) -> Adapter | None:
    """The newest version, if it is this run's and did not pass a gate: it is judged again and not trained again."""
    newest = model.store.newest(name)
    if not newest or (model.store.exists(name) and newest == model.store.current_version(name)):
        return None
    with contextlib.suppress(AdapterError):
        adapter = model.store.load(name, newest)
        if adapter.training.get("run_id") == identity:
            return adapter
    return None


def default_budget(manifest: Manifest, config: TrainingConfig) -> int | None:
    """The bundle's budget in bytes; None if it has none, or it cannot be kept.

    That is so on some systems, and after a prefix of an older bundle, which does not tell what its graphs need.
    """
    if manifest.budget is None or resident_memory() is None:
        return None
    prefix = chosen_prefix(manifest, config.train_last, config.cache is not None)
    return None if prefix is not None and prefix.file not in manifest.memory else manifest.budget.bytes


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


def _recorded(adapter: Adapter) -> Progress:
    record = adapter.training
    return Progress(
        step=int(record.get("steps", 0)),
        history=list(record.get("history", [])),
        best_epoch=record.get("best_epoch"),
        stopped_early=bool(record.get("stopped_early", False)),
    )


def _report(
    name: str, version: int, adapter: Adapter, progress: Progress, config: TrainingConfig, already_done: bool
) -> TrainingReport:
    return TrainingReport(
        adapter=name,
        version=version,
        steps=progress.step,
        resumed_at=progress.step if already_done else 0,
        seconds=progress.seconds,
        step_seconds_median=None,
        history=tuple(progress.history),
        best_epoch=progress.best_epoch,
        stopped_early=progress.stopped_early,
        already_done=already_done,
        trainable_parameters=sum(adapter.tensors[name].size for name in trained_tensors(adapter, config)),
        labels=adapter.labels,
    )
