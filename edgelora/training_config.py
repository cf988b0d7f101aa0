"""The settings of a training run, checked as they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgelora.errors import ConfigError
from edgelora.prefix_cache import DTYPES, PLACES
from edgelora.schedules import SCHEDULES

OPTIMIZERS = ("adamw", "sgd")
GRADIENTS = ("backward", "spsa")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run, with the names of transformers' TrainingArguments where it has one.

    `micro_batch_size` splits a batch into parts of similar length whose gradients are summed (the same
    result, less memory and less padding). `group_by_length` makes batches of similar length.
    `early_stopping_patience` counts epochs without a better validation metric; with a validation set the
    best epoch's adapter is kept, unless `load_best_model_at_end` is off. `max_grad_norm` 0 turns clipping
    off. `save_steps` is how often the state is written.

    `max_steps` ends the run early, in updates. `batch_size` is in samples, `warmup_ratio` a share of all steps
    (`warmup_steps`, if not 0, goes before it). `weight_decay` is decoupled with "adamw" and added to the gradient
    with "sgd", as torch has them; `momentum` is sgd's. `class_weight` "balanced" weighs a class by n/(k·n_c), as
    scikit-learn does. `loss` names one of the task's (None: its first); `temperature` is the contrastive
    loss's τ, `margin` the triplet loss's, a Euclidean distance.

    `gradient` "backward" is exact; "spsa" is a zeroth-order estimate from the inference graph alone, averaged
    over `spsa_directions` random directions of length `spsa_epsilon` times their norm (zeroth_order.py): it
    serves points that have no gradient, at two forward passes a direction and many more steps.

    `loraplus_lr_ratio` is LoRA+ (arXiv:2402.12354): the learning rate of every B and of a head's bias is that many
    times the others', as peft.optimizers.create_loraplus_optimizer has it. `lora_fa` is LoRA-FA: A stays as it began
    (methods/lora_fa.py). Both train LoRA adapters.

    `train_last` trains the adapters of that many last layers alone (the bundle must have been converted for it). What
    comes before runs once a sample, and is kept in `cache` "memory" or "disk" (None: it runs each time), with real
    numbers in `cache_dtype`, in at most `cache_limit` bytes. With "float32" the result is that without cache, up to
    rounding. `keep_cache` leaves the file of "disk" for a later run. A bundle of skips (`convert --placement skip`) is
    trained from the cache alone, unless that is None, or there is LoRA dropout or augmentation.

    `max_length` is the number of tokens of a row of a language model at most (None: what the base takes; plain text is
    cut into rows of 256 then): a longer sample is refused, or with `truncate` cut at its end. With `packing` short
    samples share rows of that length, without seeing each other; `batch_size` then counts rows, so that there are fewer
    updates. `beta` is DPO's: how dear it is to leave the base. Names are TRL's.

    `augment` names how training samples are varied, of what the task has (`Task.augmentations`): another way each
    epoch, drawn from (seed, epoch, sample) alone. A frozen prefix then runs at every step, and nothing of it is kept.
    `flip_pairs` are names of points that change places in a mirrored picture, such as left and right ones (none).
    `dice_weight` is what the Dice loss of masks counts beside their cross-entropy; 0 leaves it out.

    Raises:
        ConfigError: values out of range; all are named.
    """

    num_train_epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 32
    micro_batch_size: int | None = None
    learning_rate: float = 2e-3
    optim: str = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.9
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    max_grad_norm: float = 1.0
    class_weight: str | None = None
    group_by_length: bool = True
    early_stopping_patience: int | None = None
    load_best_model_at_end: bool = True
    loss: str | None = None
    temperature: float = 0.05
    margin: float = 0.5
    seed: int = 0
    save_steps: int = 20
    gradient: str = "backward"
    spsa_directions: int = 1
    spsa_epsilon: float = 1e-3
    loraplus_lr_ratio: float | None = None
    lora_fa: bool = False
    train_last: int | None = None
    cache: str | None = "memory"
    cache_dtype: str = "float32"
    cache_limit: int | None = None
    keep_cache: bool = False
    augment: tuple[str, ...] = ()
    flip_pairs: tuple[tuple[str, str], ...] = ()
    dice_weight: float = 1.0
    max_length: int | None = None
    truncate: bool = False
    packing: bool = False
    beta: float = 0.1

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {rule}, not {getattr(self, name)}"
            for name, rule, holds in (
                ("num_train_epochs", "at least 1", self.num_train_epochs >= 1),
                ("max_steps", "at least 1", self.max_steps is None or self.max_steps >= 1),
                ("batch_size", "at least 1", self.batch_size >= 1),
                ("micro_batch_size", "at least 1", self.micro_batch_size is None or self.micro_batch_size >= 1),
                ("learning_rate", "above 0", 0 < self.learning_rate < float("inf")),
                ("optim", f"one of {', '.join(OPTIMIZERS)}", self.optim in OPTIMIZERS),
                ("weight_decay", "at least 0", 0 <= self.weight_decay < float("inf")),
                ("momentum", "in [0, 1)", 0 <= self.momentum < 1),
                ("lr_scheduler_type", f"one of {', '.join(SCHEDULES)}", self.lr_scheduler_type in SCHEDULES),
                ("warmup_steps", "at least 0", self.warmup_steps >= 0),
                ("warmup_ratio", "in [0, 1]", 0 <= self.warmup_ratio <= 1),
                ("max_grad_norm", "at least 0", self.max_grad_norm >= 0),
                ("class_weight", "'balanced' or absent", self.class_weight in (None, "balanced")),
                (
                    "early_stopping_patience",
                    "at least 1",
                    self.early_stopping_patience is None or self.early_stopping_patience >= 1,
                ),
                ("temperature", "above 0", 0 < self.temperature < float("inf")),
                ("margin", "at least 0", 0 <= self.margin < float("inf")),
                ("dice_weight", "at least 0", 0 <= self.dice_weight < float("inf")),
                ("max_length", "at least 2", self.max_length is None or self.max_length >= 2),
                ("beta", "above 0", 0 < self.beta < float("inf")),
                ("seed", "at least 0", self.seed >= 0),
                ("save_steps", "at least 1", self.save_steps >= 1),
                ("gradient", f"one of {', '.join(GRADIENTS)}", self.gradient in GRADIENTS),
                ("spsa_directions", "at least 1", self.spsa_directions >= 1),
                ("spsa_epsilon", "above 0", 0 < self.spsa_epsilon < float("inf")),
                (
                    "loraplus_lr_ratio",
                    "above 0",
                    self.loraplus_lr_ratio is None or 0 < self.loraplus_lr_ratio < float("inf"),
                ),
                ("train_last", "at least 1", self.train_last is None or self.train_last >= 1),
                ("cache", f"one of {', '.join(PLACES)} or None", self.cache in (None, *PLACES)),
                ("cache_dtype", f"one of {', '.join(DTYPES)}", self.cache_dtype in DTYPES),
                ("cache_limit", "at least 0", self.cache_limit is None or self.cache_limit >= 0),
            )
            if not holds
        ]
        if problems:
            raise ConfigError("; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self)

    def decisive(self) -> dict[str, Any]:
        """The settings that a result depends on: all but where a cache lies, and those of what there is not."""
        settings = self.to_dict()
        for name in ("loraplus_lr_ratio", "lora_fa", "augment", "flip_pairs", "max_length", "truncate", "packing"):
            if not settings[name]:
                del settings[name]
        for name, default in (("dice_weight", 1.0), ("beta", 0.1)):
            if settings[name] == default:
                del settings[name]
        names = ("train_last", "cache", "cache_dtype", "cache_limit", "keep_cache")
        cache = {name: settings.pop(name) for name in names}
        settings |= {"train_last": self.train_last, "cached": self.cache is not None}
        if self.cache is not None:
            settings |= {name: cache[name] for name in ("cache_dtype", "cache_limit")}
        return settings
