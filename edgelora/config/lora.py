"""Settings of LoRA adapters."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

from edgelora.config.adapter import AdapterConfig
from edgelora.config.checks import alpha_problems, dropout_problems, map_problems, rank_problems, short
from edgelora.errors import ConfigError
from edgelora.patterns import suffix_match

BIASES = ("none", "lora_only", "all")
# LoRA initialisations that leave the base's weights as they are. Others make a base of their own, which the adapter is
# meant for.
_INITIALISATIONS = ("gaussian", "orthogonal", "eva", "mica")
_PISSA = re.compile(r"pissa(?:_niter_([1-9]\d{0,2}))?")


@dataclass(frozen=True)
class LoraConfig(AdapterConfig):
    """Settings of a LoRA adapter (peft.LoraConfig; the paper is arXiv:2106.09685).

    `r` is the rank, 1 to 65,536; the low-rank product is multiplied by `lora_alpha`/r, or by `lora_alpha`/√r with
    `use_rslora`. With `use_dora` the columns of W and the product together have lengths of their own
    (edgelora/methods/dora.py). `bias` says which biases of the base learn: "none", "lora_only" those of the modules, or
    "all" (edgelora/methods/lora_bias.py). `init_lora_weights` is True, or "pissa" (edgelora/methods/pissa.py),
    exactly or with "pissa_niter_N" nearly and faster, N iterations, 1 to 999. `rank_pattern` and `alpha_pattern` map
    patterns of ids to other values. `lora_dropout` is the probability, in [0, 1), that an element of an adapter's input
    is dropped in training. See `AdapterConfig` for the rest.

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str] = "LORA"
    neutral: ClassVar[Mapping[str, Any]] = {
        "lora_bias": False,
        "use_qalora": False,
        "layer_replication": None,
        "target_parameters": None,
        "trainable_token_indices": None,
        "alora_invocation_tokens": None,
        "use_bdlora": None,
        "arrow_config": None,
        "kasa_config": None,
        "velora_config": None,
        "monteclora_config": None,
        "megatron_config": None,
    }
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            "corda_config",
            "ensure_weight_tying",
            "eva_config",
            "loftq_config",
            "lora_ga_config",
            "megatron_core",
            "qalora_group_size",
            "runtime_config",
        }
    )

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    bias: str = "none"

    def problems(self) -> list[str]:
        problems = [
            *rank_problems("r", self.r),
            *alpha_problems("lora_alpha", self.lora_alpha),
            *map_problems("rank_pattern", self.rank_pattern, rank_problems),
            *map_problems("alpha_pattern", self.alpha_pattern, alpha_problems),
            *super().problems(),
            *dropout_problems("lora_dropout", self.lora_dropout),
        ]
        problems += [
            f"{name} must be true or false, not {value!r}"
            for name, value in (("use_rslora", self.use_rslora), ("use_dora", self.use_dora))
            if not isinstance(cast(object, value), bool)
        ]
        if self.bias not in BIASES:
            problems.append(f"bias must be {', '.join(BIASES[:-1])} or {BIASES[-1]}, not {short(self.bias)}")
        elif self.bias != "none" and (self.use_dora or self.is_pissa):
            problems.append(f"bias {self.bias!r} is for LoRA without use_dora and without PiSSA")
        if self.init_lora_weights is not True and not self.is_pissa:
            known = "true, 'pissa' or 'pissa_niter_N'"
            problems.append(f"init_lora_weights must be {known}, not {short(self.init_lora_weights)}")
        if self.is_pissa:
            problems += [
                f"{name} and init_lora_weights={self.init_lora_weights!r} exclude each other"
                for name in ("use_dora", "lora_dropout")
                if getattr(self, name)
            ]
        if self.is_pissa and not problems:
            try:
                self.saved()
            except ConfigError as error:
                problems.append(f"what PiSSA saves has twice the rank: {error}")
        return problems

    @property
    def is_pissa(self) -> bool:
        """Whether the adapter begins as the largest singular values of the base's weights."""
        return isinstance(self.init_lora_weights, str) and _PISSA.fullmatch(self.init_lora_weights) is not None

    @property
    def pissa_iterations(self) -> int | None:
        """How many iterations approximate these; None where they are exact."""
        found = _PISSA.fullmatch(str(self.init_lora_weights))
        return None if found is None or found[1] is None else int(found[1])

    def saved(self) -> Self:
        if not self.is_pissa:
            return self
        factor = math.sqrt(2) if self.use_rslora else 2
        return replace(
            self,
            init_lora_weights=True,
            r=2 * self.r,
            lora_alpha=factor * self.lora_alpha,
            rank_pattern={pattern: 2 * rank for pattern, rank in self.rank_pattern.items()},
            alpha_pattern={pattern: factor * alpha for pattern, alpha in self.alpha_pattern.items()},
        )

    @property
    def all_biases(self) -> bool:
        return self.bias == "all"

    @property
    def dropout(self) -> float:
        return self.lora_dropout

    def rank(self, point_id: str) -> int:
        """The rank at a point: `rank_pattern`'s first matching entry, else `r`."""
        return self.rank_pattern.get(_pattern_key(self.rank_pattern, point_id), self.r)

    def scale(self, point_id: str) -> float:
        """What the low-rank product is multiplied by: alpha/r, or alpha/√r for rsLoRA (arXiv:2312.03732)."""
        alpha, rank = float(self.alpha(point_id)), self.rank(point_id)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def alpha(self, point_id: str) -> float:
        """The alpha at a point: `alpha_pattern`'s first matching entry, else `lora_alpha`."""
        return self.alpha_pattern.get(_pattern_key(self.alpha_pattern, point_id), self.lora_alpha)

    def renamed(self, ids: Mapping[str, str]) -> Self:
        return super(LoraConfig, self._spelled_out(ids)).renamed(ids)

    def without_order(self, points: Sequence[str]) -> Self:
        by_name = replace(
            self,
            rank_pattern=dict(sorted(self.rank_pattern.items())),
            alpha_pattern=dict(sorted(self.alpha_pattern.items())),
        )
        if all(by_name.rank(p) == self.rank(p) and by_name.alpha(p) == self.alpha(p) for p in points):
            return self
        return self._spelled_out({point: point for point in points})

    def _spelled_out(self, ids: Mapping[str, str]) -> Self:
        """Ranks and alphas of each point, under its new id, where they differ from the usual."""
        ranks = {new: self.rank(old) for old, new in ids.items()}
        alphas = {new: self.alpha(old) for old, new in ids.items()}
        return replace(
            self,
            rank_pattern={_exactly(point): rank for point, rank in sorted(ranks.items()) if rank != self.r},
            alpha_pattern={_exactly(point): a for point, a in sorted(alphas.items()) if a != self.lora_alpha},
        )

    def to_dict(self) -> dict[str, Any]:
        """Without what was not known once where it says nothing: what was written before stays as it is."""
        usual = {"use_dora": False, "init_lora_weights": True, "bias": "none"}
        return {k: v for k, v in super().to_dict().items() if k not in usual or v != usual[k]}

    def to_peft(self, task_type: str | None, points: Sequence[str] | None = None) -> dict[str, Any]:
        own = {"bias": "none", "fan_in_fan_out": False, "init_lora_weights": True, "use_dora": False}
        return {**own, **super().to_peft(task_type, points)}

    @classmethod
    def from_peft(cls, body: Mapping[str, Any], where: str) -> Self:
        """An initialisation that leaves the base as it is says nothing of the tensors that there are, nor does the
        dropout that PiSSA learned with.
        """
        initialisation = body.get("init_lora_weights")
        if not isinstance(initialisation, str) or initialisation.lower() in _INITIALISATIONS:
            body = {key: value for key, value in body.items() if key != "init_lora_weights"}
        elif _PISSA.fullmatch(initialisation) and not dropout_problems("lora_dropout", body.get("lora_dropout")):
            body = {key: value for key, value in body.items() if key != "lora_dropout"}
        return super().from_peft(body, where)

    @classmethod
    def refused(cls, body: Mapping[str, Any]) -> list[str]:
        initialisation = body.get("init_lora_weights")
        if isinstance(initialisation, str) and initialisation not in ("pissa", *_INITIALISATIONS):
            return [
                f"init_lora_weights={initialisation!r} (it may change the base; save the adapter from PEFT with "
                "path_initial_model_for_weight_conversion)"
            ]
        return []


def unscaled(ranks: Mapping[str, int]) -> LoraConfig:
    """Settings with these ranks by point and a scale of 1: alpha is the rank."""
    (usual, _), *_ = Counter(ranks.values()).most_common(1) or [(1, 0)]
    others = {_exactly(point): rank for point, rank in sorted(ranks.items()) if rank != usual}
    return LoraConfig(
        r=usual, lora_alpha=usual, target_modules=tuple(sorted(ranks)), rank_pattern=others, alpha_pattern=others
    )


def _exactly(name: str) -> str:
    """A key of `rank_pattern` and `alpha_pattern` that matches this path alone, and no longer one that ends in it."""
    return f"^{re.escape(name)}"


def _pattern_key(patterns: Iterable[str], point_id: str) -> str:
    """PEFT's get_pattern_key: the first pattern that matches the id or a dotted suffix of it."""
    return next((key for key in patterns if suffix_match(key, point_id)), point_id)
