"""Train or continue a named adapter: lock, run, publish a new version. What `edgelora train` calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

import numpy as np

from edgelora.adapter import Adapter, settings_field
from edgelora.config import AdapterConfig
from edgelora.errors import AdapterError, ConfigError, EdgeLoraError
from edgelora.files import remove_tree
from edgelora.gate import Gate, judge
from edgelora.manifest import Manifest
from edgelora.memory_layout import read_layout, write_layout
from edgelora.memory_plan import MemoryPlan, follow, plan_memory
from edgelora.prefix_cache import chosen_prefix
from edgelora.runtime import Model
from edgelora.samples import Sample, digest
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora.training_checks import check_targets
from edgelora.training_clock import read_began, told_the_time, write_began
from edgelora.training_config import TrainingConfig
from edgelora.training_outcome import worsened
from edgelora.training_report import TrainingReport, recorded, report_of
from edgelora.training_run import Callback, RunResult, finish, fit, run_id
from edgelora.training_start import chosen_lora, default_budget, identity_of, merged_labels, starting_adapter
from edgelora.training_state import STATE_FILE, StateFile, unfinished

_OF_BUNDLE = "the bundle's --ram"


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
    _check_settings(model, config, validation)
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
            first = chosen_lora(manifest, None, asked, config)
            if _made_by(current, decisive, first):
                version = model.store.current_version(name)
                return report_of(name, version, current, recorded(current), config, already_done=True)
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
            evaluated = [one for one in (held_out, judged) if one is not None]
            longest = max(evaluated, key=lambda one: int(one.lengths().max()), default=None)
            layout = read_layout(folder, identity) if continued else None
            plan = plan_memory(trainer, longest, ram, layout, "--ram" if given else _OF_BUNDLE)
        if ((restart or discard) and not usable) or (owner is not None and owner == parent):
            remove_tree(folder)  # discarded, or what a finished run had no time to remove
        held_back = None if again else _held_back(model, name, identity)
        before, was_there = model.bundle.settings, folder.exists()
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
                result = RunResult(held_back, recorded(held_back), steps, ())
            adapter = finish(result, identity, parent, settings)
            worse = worsened(trainer, start, result) if held_back is None else None
            verdict = None
            if gate is not None and judged is not None:
                previous = model.store.load(name) if model.store.exists(name) else None
                fresh = starting_adapter(manifest, None, lora, labels, samples, config.seed, model.bundle)
                verdict = judge(model, gate, judged, trainer.part_size, adapter, previous, fresh)
        except EdgeLoraError:
            if not was_there and not (folder / STATE_FILE).exists():  # there is no update to go on from
                trainer.close()
                remove_tree(folder)
            raise
        finally:
            if model.bundle.settings != before:
                model.bundle.use_settings(before)
        version = model.store.save(name, adapter, activate=verdict is None or verdict.accepted)
        trainer.close()
        if config.keep_cache:
            (folder / STATE_FILE).unlink(missing_ok=True)
        else:
            remove_tree(folder)
    report = report_of(name, version, adapter, result.progress, config, already_done=held_back is not None)
    median = float(np.median(result.step_seconds)) if result.step_seconds else None
    return replace(
        report,
        resumed_at=result.resumed_at,
        step_seconds_median=median,
        memory=plan,
        gate=verdict,
        notes=(*_notes(manifest, trainer, config), *([] if worse is None else [worse])),
    )


def _check_settings(model: Model, config: TrainingConfig, validation: Sequence[Sample] | None) -> None:
    """Raise ConfigError for settings that ask for what is not there, or for what must not be."""
    if config.early_stopping_patience is not None and not validation:
        raise ConfigError("early_stopping_patience needs validation samples to judge by")
    if model.store.key is None or config.cache != "disk":
        return
    if chosen_prefix(model.bundle.manifest, config.train_last, keeps=True) is not None:
        raise ConfigError(
            'a store with a key keeps no cache on the disk, where it would not be encrypted: take "memory"'
        )


def _made_by(adapter: Adapter, decisive: Mapping[str, Any], first: AdapterConfig) -> bool:
    """Whether the run that these decide made the adapter; PiSSA's had the settings `first`, and saved others."""
    parent = adapter.training.get("parent")
    runs = (decisive, {**decisive, settings_field(first): first.to_dict()})
    return adapter.training.get("run_id") in [run_id(**one, parent=parent) for one in runs]


def _notes(manifest: Manifest, trainer: Trainer, config: TrainingConfig) -> tuple[str, ...]:
    """What augmentation costs where the bundle could have kept the prefix's values, and points that learned nothing."""
    notes: list[str] = []
    if trainer.augmented and config.cache is not None and chosen_prefix(manifest, config.train_last, keeps=True):
        notes.append(
            "augmented samples are others in each epoch: the frozen layers ran at every step, and nothing was kept"
        )
    told: object = (manifest.verification or {}).get("unreached")
    points = trainer.adapter.joined(manifest) if isinstance(told, list) else ()
    if unreached := [point.id for point in points if point.id in cast("list[object]", told)]:
        notes.append(
            f"no gradient reached {', '.join(unreached)} when the bundle was checked: what was trained there may be "
            "as it began"
        )
    return tuple(notes)


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
