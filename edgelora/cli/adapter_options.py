"""Which adapter is trained: options of train, in PEFT's names."""

from __future__ import annotations

import argparse
from typing import Any

from edgelora.cli.values import pattern_values, patterns
from edgelora.config import BIASES, AdapterConfig, LoraConfig
from edgelora.errors import ConfigError
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


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """The settings of a new adapter."""
    group = parser.add_argument_group("adapter (PEFT's names; for a new adapter, or one that is a head alone)")
    group.add_argument(
        "--method",
        choices=tuple(_OPTIONS),
        help="lora (default) and vera run in every bundle, the others in one converted with --methods",
    )
    group.add_argument(
        "--rank", "-r", type=int, help="rank of every point (8; of vera 256); of bottleneck its width (a sixteenth)"
    )
    group.add_argument("--lora-alpha", type=float, help="scale = alpha/rank (2 × rank)")
    group.add_argument("--lora-dropout", type=float, help="dropout on the adapters' inputs (0)")
    group.add_argument(
        "--target-modules",
        nargs="+",
        metavar="PATTERN",
        help="of the bundle's points (all); none trains the head alone",
    )
    group.add_argument("--exclude-modules", nargs="+", metavar="PATTERN")
    group.add_argument("--layers-to-transform", nargs="+", type=int, metavar="LAYER")
    group.add_argument(
        "--bias",
        choices=BIASES,
        help="of lora: the base's biases that learn too (none); lora_only, those of the chosen modules, and all need a "
        "bundle converted with --methods lora-bias",
    )
    group.add_argument("--rank-pattern", nargs="+", metavar="PATTERN=R", help="other ranks for some points")
    group.add_argument("--alpha-pattern", nargs="+", metavar="PATTERN=ALPHA", help="other alphas for some points")
    group.add_argument(
        "--num-virtual-tokens", type=int, metavar="N", help="of prompt and prefix: how many before every text (20)"
    )
    group.add_argument(
        "--feedforward-modules", nargs="+", metavar="PATTERN", help="those that ia3 scales at their input (none)"
    )
    group.add_argument("--non-linearity", metavar="NAME", help="of bottleneck: relu (default) or gelu")
    group.add_argument("--scaling", type=float, help="of bottleneck: what its output is multiplied by (1)")
    group.add_argument("--rslora", action="store_true", default=None, help="scale = alpha/√rank")
    group.add_argument(
        "--init",
        metavar="NAME",
        help="of lora: pissa begins with the largest singular values of the weights, pissa_niter_N nearly and faster; "
        "what is saved is LoRA of twice the rank",
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
