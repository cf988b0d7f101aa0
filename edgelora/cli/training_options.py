"""How an adapter is trained: options of train, fields of `TrainingConfig`."""

from __future__ import annotations

import argparse

from edgelora.cli.common import add_lengths, memory_size
from edgelora.cli.values import name_pairs
from edgelora.prefix_cache import DTYPES, PLACES
from edgelora.training_config import GRADIENTS, OPTIMIZERS, TrainingConfig


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """The settings of a training, and its memory budget."""
    defaults = TrainingConfig()
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=defaults.num_train_epochs, help=f"({defaults.num_train_epochs})")
    group.add_argument("--max-steps", type=int, help="stop after this many updates")
    group.add_argument("--batch-size", type=int, default=defaults.batch_size, help=f"({defaults.batch_size})")
    group.add_argument("--micro-batch-size", type=int, help="split batches; the same result in less memory")
    group.add_argument(
        "--ram",
        type=lambda text: 0 if text == "none" else memory_size(text),
        metavar="SIZE",
        help="a memory budget for the whole process, as 256MB or 1.5GiB: splits batches, gives up prepacked weights "
        "and computes parts twice as far as needed, predicts the peak, and refuses what cannot fit before it begins "
        "(default: the bundle's, if `edgelora convert --ram` gave it one; none: without a budget)",
    )
    group.add_argument(
        "--learning-rate", "--lr", type=float, default=defaults.learning_rate, help=f"({defaults.learning_rate})"
    )
    group.add_argument("--optim", choices=OPTIMIZERS, default=defaults.optim)
    group.add_argument(
        "--gradient",
        choices=GRADIENTS,
        default=defaults.gradient,
        help="backward (default): exact; spsa: a zeroth-order estimate from forward passes alone, for points that "
        "have no gradient (`edgelora points --explain`); it needs many more steps",
    )
    group.add_argument(
        "--spsa-directions", type=int, default=defaults.spsa_directions, help="random directions a step (1)"
    )
    group.add_argument("--spsa-epsilon", type=float, default=defaults.spsa_epsilon, help="perturbation (0.001)")
    group.add_argument(
        "--loraplus-lr-ratio", type=float, metavar="RATIO", help="LoRA+: B learns so many times faster than A"
    )
    group.add_argument("--lora-fa", action="store_true", help="LoRA-FA: A stays as it began")
    group.add_argument("--weight-decay", type=float, default=defaults.weight_decay)
    group.add_argument("--momentum", type=float, default=defaults.momentum, help="of sgd (0.9)")
    group.add_argument("--schedule", default=defaults.lr_scheduler_type, help="linear (default), cosine or constant")
    group.add_argument("--warmup-steps", type=int, default=0)
    group.add_argument("--warmup-ratio", type=float, default=0.0)
    group.add_argument(
        "--max-grad-norm", type=float, default=defaults.max_grad_norm, help="clipping; 0 turns it off (1)"
    )
    group.add_argument("--class-weight", choices=("balanced",), help="weigh rare classes up")
    group.add_argument("--loss", help="of the bundle's losses (the task's first)")
    group.add_argument("--temperature", type=float, default=defaults.temperature, help="of the contrastive loss (0.05)")
    group.add_argument("--margin", type=float, default=defaults.margin, help="of the triplet loss (0.5)")
    add_lengths(group)
    group.add_argument(
        "--packing",
        action=argparse.BooleanOptionalAction,
        default=defaults.packing,
        help="of language models: short samples share rows, without seeing each other: less padding, and fewer "
        "updates, since a batch counts rows (no)",
    )
    group.add_argument(
        "--patience", type=int, metavar="EPOCHS", help="stop after so many epochs without a better validation"
    )
    group.add_argument("--no-group-by-length", action="store_true", help="mix lengths within a batch (more padding)")
    group.add_argument(
        "--augment",
        nargs="+",
        default=[],
        metavar="KIND",
        help="vary the training samples in each epoch (not at all), pictures by flip, crop, color, sounds by gain, "
        "shift, noise; the frozen layers of --train-last then run at every step",
    )
    group.add_argument(
        "--flip-pairs", nargs="+", default=[], metavar="A=B", help="points that change places in a mirrored picture"
    )
    group.add_argument(
        "--dice-weight", type=float, default=defaults.dice_weight, help="of the Dice loss beside cross-entropy (1)"
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--train-last",
        type=int,
        metavar="K",
        help="adapt the last K layers alone, from what the frozen layers before them made of each sample once "
        "(`edgelora convert --train-last K`)",
    )
    group.add_argument(
        "--cache",
        choices=(*PLACES, "none"),
        default=defaults.cache,
        help="where that is kept: memory (default), disk (a private file, removed at the end) or none",
    )
    group.add_argument(
        "--cache-dtype",
        choices=DTYPES,
        default=defaults.cache_dtype,
        help="float32 is exact (default), float16 half the size",
    )
    group.add_argument(
        "--cache-limit", type=memory_size, metavar="SIZE", help="at most, as 200MB; the rest is recomputed"
    )
    group.add_argument("--keep-cache", action="store_true", help="leave the file of --cache disk for a later training")
    group.add_argument(
        "--save-steps",
        type=int,
        default=defaults.save_steps,
        help=f"write the state every so many steps ({defaults.save_steps})",
    )


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
