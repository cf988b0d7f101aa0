"""The action of `adapters` that makes one adapter of several: combine."""

from __future__ import annotations

import argparse

import numpy as np

from edgelora.cli.common import emit
from edgelora.combining import COMBINATION_TYPES, SIGN_METHODS, combine
from edgelora.errors import ConfigError
from edgelora.store import AdapterStore


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of combine, with PEFT's names."""
    group = parser.add_argument_group("combine (PEFT's names)")
    group.add_argument(
        "--from",
        dest="parts",
        nargs="+",
        metavar="NAME:WEIGHT",
        help="the adapters, each with its weight, which may be negative (without: 1)",
    )
    group.add_argument(
        "--combination-type",
        choices=COMBINATION_TYPES,
        default="svd",
        help="cat: the weighted sum, with the sum of the ranks; svd (default): its best approximation of one rank; the "
        "others are rougher",
    )
    group.add_argument("--density", type=float, help="of ties, dare_… and magnitude_prune: the share that is kept")
    group.add_argument("--majority-sign-method", choices=SIGN_METHODS, default="total", help="of …ties (total)")
    group.add_argument("--svd-rank", type=int, metavar="R", help="of …svd (default: the largest of the adapters')")
    group.add_argument("--seed", type=int, default=0, help="of dare_… (0)")
    group.add_argument("--head-from", metavar="NAME", help="whose head to keep, where several have one")


def run_combine(options: argparse.Namespace, store: AdapterStore) -> None:
    """Store -> one more adapter in the store."""
    if options.name is None:
        raise ConfigError("`adapters combine` needs the new adapter's NAME")
    if not options.parts:
        raise ConfigError("`adapters combine` needs --from NAME:WEIGHT …")
    weights = _weights(options.parts)
    adapters = {name: store.load(name) for name in weights}
    new = combine(
        adapters,
        list(weights.values()),
        options.combination_type,
        density=options.density,
        majority_sign_method=options.majority_sign_method,
        svd_rank=options.svd_rank,
        head_from=options.head_from,
        rng=np.random.default_rng(options.seed),
    )
    version = store.save(options.name, new)
    body = {"adapter": options.name, "version": version, "weights": weights, "parameters": new.parameters}
    emit(options, body, f"{options.name}: version {version} saved, {new.parameters:,} values")


def _weights(parts: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in parts:
        name, _, number = part.partition(":")
        if name in weights:
            raise ConfigError(f"--from names {name} twice: add its weights")
        try:
            weights[name] = float(number) if number else 1.0
        except ValueError as error:
            raise ConfigError(f"--from {part}: {number!r} is not a number") from error
    return weights
