"""The verb that learns: train."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgelora.cli.base import patterns
from edgelora.cli.common import (
    Verbs,
    add_bundle,
    add_format,
    add_lengths,
    add_verb,
    emit,
    end_progress,
    memory_size,
    note,
    open_model,
    progress_line,
    table,
)
from edgelora.cli.pictures import BeforeAndAfter, drawing_task
from edgelora.config import BIASES, AdapterConfig, LoraConfig
from edgelora.errors import ConfigError
from edgelora.gate import Gate
from edgelora.language.samples import Preference
from edgelora.memory import peak_memory
from edgelora.methods import (
    BeftConfig,
    BottleneckConfig,
    FullConfig,
    IA3Config,
    LNTuningConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
)
from edgelora.prefix_cache import DTYPES, PLACES
from edgelora.samples import Sample, split
from edgelora.trainer import StepResult
from edgelora.training import TrainingReport, before_training, train
from edgelora.training_config import GRADIENTS, OPTIMIZERS, TrainingConfig
from edgelora.training_state import Progress

N = TypeVar("N", int, float)
_TARGETS = ("target_modules", "exclude_modules", "layers_to_transform")
_LORA = (*_TARGETS, "rank", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "rslora")
_OPTIONS = {  # of an adapter method
    "lora": (*_LORA, "init", "bias"),
    "dora": _LORA,
    "vera": (*_TARGETS, "rank", "lora_dropout"),
    "ia3": (*_TARGETS, "feedforward_modules"),
    "bitfit": _TARGETS,
    "layer-norm": _TARGETS,
    "bottleneck": (*_TARGETS, "rank", "non_linearity", "scaling"),
    "full": _TARGETS,
    "prompt": ("num_virtual_tokens",),
    "prefix": ("num_virtual_tokens",),
}
_VIRTUAL = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}


def add_verbs(verbs: Verbs) -> None:
    """Register the verb."""
    parser = add_verb(
        verbs,
        "train",
        run_train,
        "Train a person's adapter, or train it further. Killed at any moment, the same command continues.",
        "edgelora train home.edgelora --adapter user-1 --data user-1.jsonl --validation-split 0.1",
    )
    add_bundle(parser)
    parser.add_argument("--adapter", required=True, metavar="NAME", help="whose adapter: a user id")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="CSV or JSONL, of language models also plain text (.txt); - reads standard input; of pictures and sounds "
        "also a folder with a folder for each label",
    )
    add_format(parser)
    parser.add_argument("--validation", metavar="FILE", help="held-out samples: the best epoch is kept")
    parser.add_argument(
        "--validation-split", type=float, default=0.0, metavar="SHARE", help="hold out this share instead"
    )
    parser.add_argument(
        "--keep", choices=("best", "last"), default="best", help="which epoch, if there is a validation (best)"
    )
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="FILE",
        help="of pictures: leave a sheet of some (held-out ones if there are any) with the truth, before and after",
    )
    parser.add_argument("--progress", action="store_true", help="show progress with --json too")
    parser.add_argument(
        "--discard", action="store_true", help="drop an unfinished training with other data or settings"
    )
    parser.add_argument("--restart", action="store_true", help="the same, and begin from a fresh adapter")
    parser.add_argument("--again", action="store_true", help="train further although this very run is done")

    gate = parser.add_argument_group(
        "gate (a version becomes current only if it is not worse than the one before, or the base)"
    )
    gate.add_argument("--held-out", metavar="FILE", help="samples to judge by, which training never sees")
    gate.add_argument("--held-out-split", type=float, metavar="SHARE", help="hold out this share of the data instead")
    gate.add_argument(
        "--gate-margin",
        type=float,
        metavar="M",
        help="by how much of the task's metric it may be worse (0); judges by the validation samples if no others are "
        "held out",
    )

    lora = parser.add_argument_group("adapter (PEFT's names; for a new adapter)")
    lora.add_argument(
        "--method",
        choices=tuple(_OPTIONS),
        help="lora (default) and vera run in every bundle, the others in one converted with --methods",
    )
    lora.add_argument(
        "--rank", "-r", type=int, help="rank of every point (8; of vera 256); of bottleneck its width (a sixteenth)"
    )
    lora.add_argument("--lora-alpha", type=float, help="scale = alpha/rank (2 × rank)")
    lora.add_argument("--lora-dropout", type=float, help="dropout on the adapters' inputs (0)")
    lora.add_argument(
        "--target-modules",
        nargs="+",
        metavar="PATTERN",
        help="of the bundle's points (all); none trains the head alone",
    )
    lora.add_argument("--exclude-modules", nargs="+", metavar="PATTERN")
    lora.add_argument("--layers-to-transform", nargs="+", type=int, metavar="LAYER")
    lora.add_argument(
        "--bias",
        choices=BIASES,
        help="of lora: the base's biases that learn too (none); lora_only, those of the chosen modules, and all need a "
        "bundle converted with --methods lora-bias",
    )
    lora.add_argument("--rank-pattern", nargs="+", metavar="PATTERN=R", help="other ranks for some points")
    lora.add_argument("--alpha-pattern", nargs="+", metavar="PATTERN=ALPHA", help="other alphas for some points")
    lora.add_argument(
        "--num-virtual-tokens", type=int, metavar="N", help="of prompt and prefix: how many before every text (20)"
    )
    lora.add_argument(
        "--feedforward-modules", nargs="+", metavar="PATTERN", help="those that ia3 scales at their input (none)"
    )
    lora.add_argument("--non-linearity", metavar="NAME", help="of bottleneck: relu (default) or gelu")
    lora.add_argument("--scaling", type=float, help="of bottleneck: what its output is multiplied by (1)")
    lora.add_argument("--rslora", action="store_true", default=None, help="scale = alpha/√rank")
    lora.add_argument(
        "--init",
        metavar="NAME",
        help="of lora: pissa begins with the largest singular values of the weights, pissa_niter_N nearly and faster; "
        "what is saved is LoRA of twice the rank",
    )

    defaults = TrainingConfig()
    run = parser.add_argument_group("training")
    run.add_argument("--epochs", type=int, default=defaults.num_train_epochs, help=f"({defaults.num_train_epochs})")
    run.add_argument("--max-steps", type=int, help="stop after this many updates")
    run.add_argument("--batch-size", type=int, default=defaults.batch_size, help=f"({defaults.batch_size})")
    run.add_argument("--micro-batch-size", type=int, help="split batches; the same result in less memory")
    run.add_argument(
        "--ram",
        type=lambda text: 0 if text == "none" else memory_size(text),
        metavar="SIZE",
        help="a memory budget for the whole process, as 256MB or 1.5GiB: splits batches, gives up prepacked weights "
        "and computes parts twice as far as needed, predicts the peak, and refuses what cannot fit before it begins "
        "(default: the bundle's, if `edgelora convert --ram` gave it one; none: without a budget)",
    )
    run.add_argument(
        "--learning-rate", "--lr", type=float, default=defaults.learning_rate, help=f"({defaults.learning_rate})"
    )
    run.add_argument("--optim", choices=OPTIMIZERS, default=defaults.optim)
    run.add_argument(
        "--gradient",
        choices=GRADIENTS,
        default=defaults.gradient,
        help="backward (default): exact; spsa: a zeroth-order estimate from forward passes alone, for points that "
        "have no gradient (`edgelora points --explain`); it needs many more steps",
    )
    run.add_argument(
        "--spsa-directions", type=int, default=defaults.spsa_directions, help="random directions a step (1)"
    )
    run.add_argument("--spsa-epsilon", type=float, default=defaults.spsa_epsilon, help="perturbation (0.001)")
    run.add_argument(
        "--loraplus-lr-ratio", type=float, metavar="RATIO", help="LoRA+: B learns so many times faster than A"
    )
    run.add_argument("--lora-fa", action="store_true", help="LoRA-FA: A stays as it began")
    run.add_argument("--weight-decay", type=float, default=defaults.weight_decay)
    run.add_argument("--momentum", type=float, default=defaults.momentum, help="of sgd (0.9)")
    run.add_argument("--schedule", default=defaults.lr_scheduler_type, help="linear (default), cosine or constant")
    run.add_argument("--warmup-steps", type=int, default=0)
    run.add_argument("--warmup-ratio", type=float, default=0.0)
    run.add_argument("--max-grad-norm", type=float, default=defaults.max_grad_norm, help="clipping; 0 turns it off (1)")
    run.add_argument("--class-weight", choices=("balanced",), help="weigh rare classes up")
    run.add_argument("--loss", help="of the bundle's losses (the task's first)")
    run.add_argument("--temperature", type=float, default=defaults.temperature, help="of the contrastive loss (0.05)")
    run.add_argument("--margin", type=float, default=defaults.margin, help="of the triplet loss (0.5)")
    add_lengths(run)
    run.add_argument(
        "--packing",
        action=argparse.BooleanOptionalAction,
        default=defaults.packing,
        help="of language models: short samples share rows, without seeing each other: less padding, and fewer "
        "updates, since a batch counts rows (no)",
    )
    run.add_argument(
        "--patience", type=int, metavar="EPOCHS", help="stop after so many epochs without a better validation"
    )
    run.add_argument("--no-group-by-length", action="store_true", help="mix lengths within a batch (more padding)")
    run.add_argument(
        "--augment",
        nargs="+",
        default=[],
        metavar="KIND",
        help="vary the training samples in each epoch (not at all), pictures by flip, crop, color, sounds by gain, "
        "shift, noise; the frozen layers of --train-last then run at every step",
    )
    run.add_argument(
        "--flip-pairs", nargs="+", default=[], metavar="A=B", help="points that change places in a mirrored picture"
    )
    run.add_argument(
        "--dice-weight", type=float, default=defaults.dice_weight, help="of the Dice loss beside cross-entropy (1)"
    )
    run.add_argument("--seed", type=int, default=0)
    run.add_argument(
        "--train-last",
        type=int,
        metavar="K",
        help="adapt the last K layers alone, from what the frozen layers before them made of each sample once "
        "(`edgelora convert --train-last K`)",
    )
    run.add_argument(
        "--cache",
        choices=(*PLACES, "none"),
        default=defaults.cache,
        help="where that is kept: memory (default), disk (a private file, removed at the end) or none",
    )
    run.add_argument(
        "--cache-dtype",
        choices=DTYPES,
        default=defaults.cache_dtype,
        help="float32 is exact (default), float16 half the size",
    )
    run.add_argument(
        "--cache-limit", type=memory_size, metavar="SIZE", help="at most, as 200MB; the rest is recomputed"
    )
    run.add_argument("--keep-cache", action="store_true", help="leave the file of --cache disk for a later training")
    run.add_argument(
        "--save-steps",
        type=int,
        default=defaults.save_steps,
        help=f"write the state every so many steps ({defaults.save_steps})",
    )


def run_train(options: argparse.Namespace) -> None:
    """Train and report."""
    config = training_config(options)
    model = open_model(options)
    task = model.task
    samples = task.read(options.data, options.format)
    held_out = task.read(options.validation) if options.validation else None
    judged = task.read(options.held_out) if options.held_out else None
    if judged is None and options.held_out_split is not None:
        samples, judged = split(samples, options.held_out_split, np.random.default_rng(options.seed))
    if held_out is None and options.validation_split:
        samples, held_out = split(samples, options.validation_split, np.random.default_rng(options.seed))
    gate = chosen_gate(options.gate_margin, judged, held_out)
    lora = adapter_config(options)
    sheet = None
    if options.contact_sheet is not None:
        drawing_task(model, "--contact-sheet")
        before = before_training(model, options.adapter, samples, lora, config, options.restart)
        sheet = BeforeAndAfter(model, held_out or judged or samples, before, options.contact_sheet)
    started = time.monotonic()
    of_tokens = model.bundle.manifest.language is not None and not any(isinstance(s, Preference) for s in samples)
    show = EpochLines(options.json and not options.progress, of_tokens)
    report = train(
        model,
        options.adapter,
        samples,
        held_out,
        lora,
        config,
        restart=options.restart,
        again=options.again,
        discard=options.discard,
        callback=show,
        ram=options.ram,
        planned=lambda plan: None if show.quiet else note(plan.describe()),
        gate=gate,
    )
    end_progress()
    if sheet is not None:
        sheet.save(model.store.load(options.adapter, report.version))
    emit(
        options,
        {**report.to_dict(), "peak_memory_bytes": peak_memory()},
        report_text(report, len(samples), time.monotonic() - started, config),
    )


def chosen_gate(
    margin: float | None, judged: Sequence[Sample] | None, validation: Sequence[Sample] | None
) -> Gate | None:
    """The gate that the options ask for, if any.

    Raises:
        ConfigError: a margin, and no samples to judge by.
    """
    if margin is None and judged is None:
        return None
    samples = judged or validation
    if not samples:
        raise ConfigError(
            "--gate-margin needs samples to judge by: --held-out FILE, --held-out-split SHARE or --validation FILE"
        )
    return Gate(samples, margin or 0.0)


def training_config(options: argparse.Namespace) -> TrainingConfig:
    """The training settings from the options."""
    return TrainingConfig(
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        learning_rate=options.learning_rate,
        optim=options.optim,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup_steps,
        warmup_ratio=options.warmup_ratio,
        max_grad_norm=options.max_grad_norm,
        class_weight=options.class_weight,
        group_by_length=not options.no_group_by_length,
        early_stopping_patience=options.patience,
        load_best_model_at_end=options.keep == "best",
        loss=options.loss,
        temperature=options.temperature,
        margin=options.margin,
        max_length=options.max_length,
        truncate=options.truncate,
        packing=options.packing,
        beta=options.beta,
        seed=options.seed,
        save_steps=options.save_steps,
        gradient=options.gradient,
        spsa_directions=options.spsa_directions,
        spsa_epsilon=options.spsa_epsilon,
        loraplus_lr_ratio=options.loraplus_lr_ratio,
        lora_fa=options.lora_fa,
        train_last=options.train_last,
        cache=None if options.cache == "none" else options.cache,
        cache_dtype=options.cache_dtype,
        cache_limit=options.cache_limit,
        keep_cache=options.keep_cache,
        augment=tuple(options.augment),
        flip_pairs=name_pairs(options.flip_pairs),
        dice_weight=options.dice_weight,
    )


def adapter_config(options: argparse.Namespace) -> AdapterConfig | None:
    """The adapter's settings if any was given, else None: the existing adapter's, or the defaults.

    Raises:
        ConfigError: an option that the method does not have, or a value out of range.
    """
    given = [name for name in dict.fromkeys(sum(_OPTIONS.values(), ())) if getattr(options, name) is not None]
    method = options.method or "lora"
    if options.method is None and not given:
        return None
    if strange := [f"--{name.replace('_', '-')}" for name in given if name not in _OPTIONS[method]]:
        raise ConfigError(f"{method} adapters have no {', '.join(strange)}")
    if method in _VIRTUAL:
        count = options.num_virtual_tokens
        return _VIRTUAL[method]() if count is None else _VIRTUAL[method](num_virtual_tokens=count)
    targets: dict[str, Any] = {
        "target_modules": patterns(options.target_modules),
        "exclude_modules": patterns(options.exclude_modules),
        "layers_to_transform": tuple(options.layers_to_transform) if options.layers_to_transform else None,
    }
    if method == "ia3":
        return IA3Config(feedforward_modules=patterns(options.feedforward_modules), **targets)
    if method == "bitfit":
        return BeftConfig(**targets)
    if method == "layer-norm":
        return LNTuningConfig(**targets)
    if method == "bottleneck":
        given_of_it = {name: getattr(options, name) for name in ("non_linearity", "scaling") if name in given}
        return BottleneckConfig(r=options.rank, **given_of_it, **targets)
    if method == "full":
        return FullConfig(**targets)
    rank = (256 if method == "vera" else 8) if options.rank is None else options.rank
    if method == "vera":
        return VeraConfig(r=rank, vera_dropout=options.lora_dropout or 0.0, **targets)
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=options.lora_dropout or 0.0,
        rank_pattern=pattern_values(options.rank_pattern, int),
        alpha_pattern=pattern_values(options.alpha_pattern, float),
        use_rslora=bool(options.rslora),
        use_dora=method == "dora",
        init_lora_weights=True if options.init is None else options.init,
        bias=options.bias or "none",
        **targets,
    )


def pattern_values(given: list[str] | None, number: Callable[[str], N]) -> dict[str, N]:
    """PATTERN=NUMBER words as a mapping.

    Raises:
        ConfigError: a word has another form.
    """
    values: dict[str, N] = {}
    for word in given or ():
        name, _, value = word.rpartition("=")
        try:
            values[name] = number(value)
        except ValueError:
            name = ""
        if not name:
            kind = "WHOLE NUMBER" if number is int else "NUMBER"
            raise ConfigError(f"{word!r} is not PATTERN={kind}, as in query=16")
    return values


def name_pairs(given: list[str]) -> tuple[tuple[str, str], ...]:
    """A=B words as pairs.

    Raises:
        ConfigError: a word has another form.
    """
    pairs: list[tuple[str, str]] = []
    for word in given:
        first, _, second = (part.strip() for part in word.partition("="))
        if not first or not second:
            raise ConfigError(f"{word!r} is not A=B, as in leftear=rightear")
        pairs.append((first, second))
    return tuple(pairs)


class EpochLines:
    """Shows steps on one line and a finished epoch on a line of its own; of losses `of_tokens` also the perplexity."""

    def __init__(self, quiet: bool, of_tokens: bool = False) -> None:
        self.quiet, self.of_tokens = quiet, of_tokens
        self.epochs_shown = 0
        self.started = time.monotonic()
        self.first = 0

    def __call__(self, step: StepResult, progress: Progress) -> None:
        if not self.first:
            self.first = step.step
            just_ended = not progress.epoch_losses
            self.epochs_shown = len(progress.history) - just_ended
            if step.step > 1 and not self.quiet:
                note(f"continuing at step {step.step} of {step.total_steps}")
        if self.quiet:
            return
        done = step.step - self.first + 1
        left = (step.total_steps - step.step) * (time.monotonic() - self.started) / done
        if len(progress.history) > self.epochs_shown:
            self.epochs_shown = len(progress.history)
            end_progress()
            entry = progress.history[-1]
            parts = [
                f"{name.replace('eval_', 'validation ')} {value:.4f}"
                for name, value in entry.items()
                if name != "epoch"
            ]
            if self.of_tokens:
                parts.insert(1, f"train_perplexity {_perplexity(entry['train_loss'])}")
            note(f"epoch {int(entry['epoch']):3d}  step {step.step:5d}  " + "  ".join(parts))
        loss = f"loss {step.loss:.4f}" + (f"  perplexity {_perplexity(step.loss)}" if self.of_tokens else "")
        progress_line(f"step {step.step}/{step.total_steps}  {loss}  lr {step.learning_rate:.2e}  {left:.0f} s left")


def _perplexity(loss: float) -> str:
    return f"{np.exp(loss):.4g}"


def report_text(report: TrainingReport, samples: int, seconds: float, config: TrainingConfig) -> str:
    """The report for people: of the epoch whose adapter was saved."""
    if report.already_done and report.gate is None:
        return (
            f"{report.adapter}: version {report.version} already holds this run ({report.steps} steps); nothing was "
            "trained. --again trains further, --restart begins anew."
        )
    rows: list[tuple[str, float]] = [
        ("samples", samples),
        ("steps", report.steps),
        ("trainable parameters", report.trainable_parameters),
    ]
    if report.labels:
        rows.append(("classes", len(report.labels)))
    if report.history:
        best = report.best_epoch if config.load_best_model_at_end else None
        kept = report.history[(best or len(report.history)) - 1]
        rows += [(name.replace("eval_", "validation ").replace("_", " "), value) for name, value in kept.items()]
    rows.append(("seconds", seconds))
    if report.memory is not None:
        rows.append(("predicted peak MB", round(report.memory.predicted / 1e6)))
        if (peak := peak_memory()) is not None:
            rows.append(("measured peak MB", round(peak / 1e6)))
    stopped = " (stopped early)" if report.stopped_early else ""
    held = "" if report.active else ", and did not pass the gate: the version before stays current"
    text = f"{report.adapter}: version {report.version} saved{stopped}{held}\n" + table(rows, ("", ""))
    text += "".join(f"\n{one}" for one in report.notes)
    if report.gate is not None:
        text += f"\ngate: {report.gate.reason}"
    if not report.active:
        text += f"\nto use it all the same: edgelora adapters … rollback {report.adapter} --to {report.version}"
    if config.gradient == "spsa":
        passes = 2 * config.spsa_directions
        text += f"\ngradients were zeroth-order estimates (SPSA), {passes} forward passes a step"
    return text
