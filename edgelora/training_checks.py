"""What must hold of an adapter, its samples and the settings before training begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgelora.adapter import Adapter
from edgelora.config import LoraConfig
from edgelora.errors import ConfigError, DataError
from edgelora.manifest import LORA_GRAPHS, InsertionPoint, Manifest, Prefix, TrainingGraph
from edgelora.methods import PromptTuningConfig, no_prefix
from edgelora.objectives import HostLoss, Objective, Regression
from edgelora.reference_losses import REFERENCES
from edgelora.training_config import TrainingConfig


def check_targets(manifest: Manifest, adapter: Adapter, objective: Objective) -> None:
    """Check that the adapter predicts what the samples tell.

    Raises:
        ConfigError: the adapter has no head. DataError: a regression with another number of targets.
    """
    if manifest.head is None:
        return
    head = adapter.tensors.get(manifest.head.weight)
    if head is None:
        raise ConfigError("this adapter has no head: train it first")
    if isinstance(objective, Regression) and objective.targets.shape[1] != len(head):
        raise DataError(
            f"the samples have {objective.targets.shape[1]} target values, the adapter predicts {len(head)}"
        )


def check_dropout(adapter: Adapter, objective: Objective) -> None:
    """Check that the loss sees the outputs as they are."""
    if adapter.config.dropout and isinstance(objective, HostLoss):
        raise ConfigError(
            "LoRA dropout cannot be combined with a loss that is computed from the outputs: it sees "
            "them without dropout; leave lora_dropout out"
        )


def check_method(adapter: Adapter, config: TrainingConfig, points: Sequence[InsertionPoint]) -> None:
    """Check that the training settings that are a method's own suit the adapter, which joins these points."""
    for name in ("loraplus_lr_ratio", "lora_fa"):
        if getattr(config, name) and not isinstance(adapter.config, LoraConfig):
            raise ConfigError(f"{name} is for LoRA adapters, and this one is {adapter.config.peft_type}")
    if config.packing and isinstance(adapter.config, PromptTuningConfig):
        raise ConfigError(
            "prompt adapters train on rows of one sample, for their tokens stand before the row: leave packing out"
        )
    kernels = [point.id for point in points if point.kernel]
    if config.lora_fa and kernels:
        raise ConfigError(f"lora_fa is for linear points; {', '.join(kernels)} are convolutions")
    if config.lora_fa and config.gradient == "spsa":
        raise ConfigError('lora_fa projects an exact gradient: leave gradient "spsa" out')


def check_points(manifest: Manifest, record: TrainingGraph, points: Sequence[InsertionPoint]) -> None:
    """Check that the graph has a gradient at each of these points."""
    absent = [point.id for point in points if point.id not in record.points]
    lost = {point.id: point.blocked_by for point in manifest.lost}
    if blocked := [point for point in absent if point in lost]:
        raise ConfigError(
            f"no gradient reaches {', '.join(blocked)}: there is no rule for "
            f"{'; '.join(dict.fromkeys(lost[point] for point in blocked))}; leave these points out of "
            'target_modules, or train them by forward passes alone with gradient "spsa" (slow)'
        )
    if absent:
        raise ConfigError(
            f"the loss {record.loss!r} does not reach {', '.join(absent)}: nothing there can be trained; "
            "leave these points out of target_modules"
        )


def check_prefix(adapter: Adapter, prefix: Prefix, config: TrainingConfig, folder: Path | None) -> None:
    """Check that the adapter stands behind the prefix, and that there is a folder for values kept on the disk."""
    if adapter.method.graphs != LORA_GRAPHS:
        raise ConfigError(no_prefix(adapter.method))
    outside = [p for p in adapter.points if p not in prefix.points]
    if outside:
        raise ConfigError(
            f"the adapter has {', '.join(outside)}, before the layers that {prefix.name} trains: leave train_last "
            "out, or begin a new adapter (--restart)"
        )
    if config.cache == "disk" and folder is None:
        raise ConfigError('cache "disk" needs a folder: give cache_folder, or take "memory"')


def check_zeroth_order(adapter: Adapter, objective: Objective) -> None:
    """Check that forward passes alone can train the adapter."""
    if adapter.config.dropout:
        raise ConfigError('LoRA dropout needs the exact gradient: gradient "spsa" runs the inference graph alone')
    if not isinstance(objective, HostLoss) and objective.loss not in REFERENCES:
        raise ConfigError(f'the loss {objective.loss!r} cannot be trained with gradient "spsa"')
