"""Weighted combinations of adapters into one, by PEFT's rules (`peft.tuners.lora.LoraModel.add_weighted_adapter`).

`cat` is the weighted sum itself, with the sum of the ranks; `svd` its best approximation of one rank. `linear`, TIES
(arXiv:2306.01708), DARE (arXiv:2311.03099) and magnitude pruning combine A's with A's and B's with B's, or, as `…_svd`,
the products, which are then approximated. Left out is PEFT's `svd_clamp`: what it cuts depends on the signs that a
linear algebra library happens to give singular vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelora.adapter import Adapter
from edgelora.config import MAX_RANK, LoraConfig, unscaled
from edgelora.errors import ConfigError
from edgelora.methods import LORA
from edgelora.methods.lora import A, B
from edgelora.peft_names import head_of

PRUNED = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
COMBINATION_TYPES = ("linear", "cat", "svd", *PRUNED, *(f"{name}_svd" for name in PRUNED))
SIGN_METHODS = ("total", "frequency")

Floats = NDArray[np.float32]


class Draws(Protocol):
    """A source of numbers in [0, 1), such as `numpy.random.Generator`."""

    def random(self, size: tuple[int, ...], /) -> NDArray[np.floating]: ...


@dataclass(frozen=True)
class _Rule:
    """How tensors of one shape become one: what is kept of each, and how signs are elected."""

    kind: str
    density: float
    sign_method: str
    draws: Draws

    def __call__(self, tensors: Sequence[Floats], weights: Sequence[float]) -> Floats:
        stack = np.stack([self._pruned(tensor) for tensor in tensors])
        weighted = stack * np.asarray(weights, np.float32).reshape(-1, *(1,) * (stack.ndim - 1))
        if not self.kind.endswith("ties"):
            return weighted.sum(0)
        signs = np.sign(stack)
        elected = np.where((stack if self.sign_method == "total" else signs).sum(0) >= 0, 1, -1)
        agree = signs == elected
        return (weighted * agree).sum(0) / np.maximum(agree.sum(0), 1).astype(np.float32)

    def _pruned(self, tensor: Floats) -> Floats:
        if self.kind in ("linear", "svd") or self.density >= 1:
            return tensor
        if self.kind.startswith("dare"):
            kept = self.draws.random(tensor.shape) < self.density
            return tensor * kept.astype(np.float32) / np.float32(self.density)
        largest = np.argsort(-np.abs(tensor).reshape(-1), kind="stable")[: int(self.density * tensor.size)]
        mask = np.zeros(tensor.size, np.float32)
        mask[largest] = 1
        return tensor * mask.reshape(tensor.shape)


def combine(
    adapters: Mapping[str, Adapter],
    weights: Sequence[float],
    combination_type: str = "svd",
    *,
    density: float | None = None,
    majority_sign_method: str = "total",
    svd_rank: int | None = None,
    head_from: str | None = None,
    rng: Draws | None = None,
) -> Adapter:
    """A new adapter made of several, each with its weight, which may be negative; its scale is 1 at every point.

    The names of `adapters` stand in errors. A point takes part with those adapters that join it. `density` is the share
    of values that TIES, DARE and magnitude pruning keep; DARE draws from `rng` (default: seed 0) point by point, for
    the A's of all adapters, then for their B's, or for the products, in PEFT's orientation. `svd_rank` is the rank of a
    `…svd` (default: the largest of the adapters'). One adapter alone is combined as `linear`. The head is that of
    `head_from`, or the only one. The result is PEFT's, but for the scale where the first adapter has `use_rslora`: PEFT
    then multiplies the sum by the root of its rank.

    Raises:
        ConfigError: adapters of different bases or tasks, several heads, different ranks where they must be equal, or
            settings that the combination does not take: all are named.
    """
    kind = "linear" if len(adapters) == 1 else combination_type
    problems = _setting_problems(adapters, weights, combination_type, density, majority_sign_method, svd_rank)
    problems += _adapter_problems(adapters, head_from)
    if not problems:
        problems += _rank_problems(adapters, kind)
    if problems:
        raise ConfigError("; ".join(problems))
    draws = np.random.default_rng(0) if rng is None else rng
    rule = _Rule(kind.removesuffix("_svd"), 1.0 if density is None else density, majority_sign_method, draws)
    configs = [_lora(adapter) for adapter in adapters.values()]
    largest = svd_rank or max(max(config.r, *config.rank_pattern.values(), 0) for config in configs)
    tensors: dict[str, Floats] = {}
    for point in dict.fromkeys(point for adapter in adapters.values() for point in adapter.points):
        parts = [_part(a, w, point) for a, w in zip(adapters.values(), weights, strict=True) if point in a.points]
        if kind == "cat":
            a, b = _concatenated(parts)
        elif kind.endswith("svd"):
            delta = rule([part.delta for part in parts], [part.weight for part in parts])
            a, b = _truncated(delta, largest)
        else:
            a, b = _mixed(parts, rule)
        tensors |= {f"{point}.lora_A": _turned(a), f"{point}.lora_B": _turned(b)}
    return _finished(tensors, adapters, head_from)


@dataclass(frozen=True)
class _Part:
    """One adapter at one point, in PEFT's orientation: A `[r, in, ...]`, B `[out, r/groups, ...]`."""

    a: Floats
    b: Floats
    scale: float
    weight: float

    @property
    def delta(self) -> Floats:
        """What the adapter adds to the weight, `[out, in, ...]`."""
        return np.tensordot(self.b.reshape(self.b.shape[:2]), self.a, 1) * np.float32(self.scale)

    @property
    def groups(self) -> int:
        return len(self.a) // self.b.shape[1]


def _part(adapter: Adapter, weight: float, point: str) -> _Part:
    a, b = (_turned(adapter.tensors[f"{point}.{factor}"]) for factor in (A, B))
    return _Part(a, b, _lora(adapter).scale(point), float(weight))


def _lora(adapter: Adapter) -> LoraConfig:
    assert isinstance(adapter.config, LoraConfig)
    return adapter.config


def _turned(tensor: Floats) -> Floats:
    """From the graph's orientation to PEFT's or back; convolutions' are the same."""
    return np.ascontiguousarray(tensor.T if tensor.ndim == 2 else tensor, np.float32)


def _mixed(parts: Sequence[_Part], rule: _Rule) -> tuple[Floats, Floats]:
    """A's with A's, B's with B's: the root of weight and scale goes to each, a sign to A."""
    factors = [part.weight * part.scale for part in parts]
    roots = [math.sqrt(abs(factor)) for factor in factors]
    a = rule([part.a for part in parts], [root if f >= 0 else -root for root, f in zip(roots, factors, strict=True)])
    return a, rule([part.b for part in parts], roots)


def _concatenated(parts: Sequence[_Part]) -> tuple[Floats, Floats]:
    """All ranks side by side, those of each group of channels together."""
    groups = parts[0].groups
    weighted = [part.a * np.float32(part.weight * part.scale) for part in parts]
    a = np.concatenate([x.reshape(groups, -1, *x.shape[1:]) for x in weighted], axis=1)
    return a.reshape(-1, *a.shape[2:]), np.concatenate([part.b for part in parts], axis=1)


def _truncated(delta: Floats, rank: int) -> tuple[Floats, Floats]:
    """The nearest product of this rank (or of the highest that there is), the singular values in B."""
    out, inner = len(delta), delta.shape[1:]
    u, s, v = np.linalg.svd(delta.reshape(out, -1), full_matrices=False)
    b, a = u[:, :rank] * s[:rank], v[:rank]
    return a.reshape(-1, *inner), b.reshape(out, -1, *(1,) * (len(inner) - 1))


def _finished(tensors: dict[str, Floats], adapters: Mapping[str, Adapter], head_from: str | None) -> Adapter:
    first = next(iter(adapters.values()))
    ranks = {
        n.removesuffix(".lora_A"): t.shape[0 if t.ndim > 2 else 1] for n, t in tensors.items() if n.endswith(".lora_A")
    }
    config = replace(unscaled(ranks), lora_dropout=_lora(first).lora_dropout)
    with_head = [name for name, adapter in adapters.items() if _head(adapter)]
    owner = adapters.get(head_from or next(iter(with_head), ""))
    if owner is not None:
        tensors |= _head(owner)
        config = replace(config, modules_to_save=owner.config.modules_to_save)
    return Adapter(
        config, tensors, first.base_digest, first.task, first.base_name, None if owner is None else owner.labels
    )


def _head(adapter: Adapter) -> dict[str, Floats]:
    return head_of(adapter.method, adapter.tensors)


def _setting_problems(
    adapters: Mapping[str, Adapter],
    weights: Sequence[float],
    kind: str,
    density: float | None,
    sign_method: str,
    svd_rank: int | None,
) -> list[str]:
    problems: list[str] = []
    if kind not in COMBINATION_TYPES:
        return [f"combination_type {kind!r} is none of {', '.join(COMBINATION_TYPES)}"]
    if not adapters or len(weights) != len(adapters):
        problems.append(f"{len(weights)} weights for {len(adapters)} adapters: give one for each")
    if not all(math.isfinite(weight) for weight in weights):
        problems.append(f"weights must be finite numbers, not {list(weights)}")
    prunes = kind.removesuffix("_svd") in PRUNED
    lowest: Callable[[float], bool] = (lambda d: d > 0) if kind.startswith("dare") else (lambda d: d >= 0)
    if prunes and (density is None or not lowest(density) or density > 1):
        problems.append(f"{kind} needs a density from 0 to 1 (dare: above 0), not {density}")
    if density is not None and not prunes:
        problems.append(f"{kind} takes no density: every value counts")
    if sign_method not in SIGN_METHODS:
        problems.append(f"majority_sign_method {sign_method!r} is none of {', '.join(SIGN_METHODS)}")
    if svd_rank is not None and not kind.endswith("svd"):
        problems.append(f"{kind} takes no svd_rank")
    if svd_rank is not None and not 1 <= svd_rank <= MAX_RANK:
        problems.append(f"svd_rank must be from 1 to {MAX_RANK}, not {svd_rank}")
    return problems


def _adapter_problems(adapters: Mapping[str, Adapter], head_from: str | None) -> list[str]:
    others = [f"{name} ({adapter.method.graphs})" for name, adapter in adapters.items() if adapter.method is not LORA]
    if others:
        return [f"LoRA adapters alone can be combined, and {', '.join(others)} are of other methods"]
    problems: list[str] = []
    if len({adapter.base_digest for adapter in adapters.values()}) > 1:
        problems.append("the adapters were trained against different base models")
    if len({adapter.task for adapter in adapters.values()}) > 1:
        problems.append(
            f"the adapters are for different tasks: {', '.join(f'{n} {a.task}' for n, a in adapters.items())}"
        )
    with_head = [name for name, adapter in adapters.items() if _head(adapter)]
    if head_from is not None and head_from not in with_head:
        problems.append(
            f"head_from names {head_from}, which is none of the adapters with a head: {', '.join(with_head)}"
        )
    if head_from is None and len(with_head) > 1:
        problems.append(
            f"heads cannot be combined, and {', '.join(with_head)} have one each: say whose to keep (head_from)"
        )
    return problems


def _rank_problems(adapters: Mapping[str, Adapter], kind: str) -> list[str]:
    problems: list[str] = []
    for point in dict.fromkeys(point for adapter in adapters.values() for point in adapter.points):
        parts = {name: _part(adapter, 1.0, point) for name, adapter in adapters.items() if point in adapter.points}
        shapes = {(part.a.shape[1:], len(part.b), part.groups) for part in parts.values()}
        ranks = {name: len(part.a) for name, part in parts.items()}
        if len(shapes) > 1:
            problems.append(f"{point} has different shapes in {', '.join(parts)}")
        elif kind.endswith("svd") and next(iter(parts.values())).groups > 1:
            problems.append(
                f"{point} is a convolution in groups, whose adapter is no one matrix: {kind} has none to split"
            )
        elif kind != "cat" and not kind.endswith("svd") and len(set(ranks.values())) > 1:
            shown = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
            problems.append(f"{kind} needs equal ranks, and at {point} they are {shown}: use cat or an svd")
    return problems
