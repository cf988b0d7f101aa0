"""Settings of adapters with PEFT's names, defaults and pattern semantics; to and from `adapter_config.json`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, cast

from edgelora.errors import AdapterError, ConfigError
from edgelora.patterns import MOST_PATTERNS, is_plain, pattern_problem, suffix_match

Patterns = tuple[str, ...] | str | None

MAX_RANK = 1 << 16
MOST_NAMES = 10_000
BIASES = ("none", "lora_only", "all")

# What enters no adapter's arithmetic, in PEFT's settings of any method. fan_in_fan_out says how the base stores its
# weight (GPT-2's Conv1D); an adapter's tensors have the same orientation either way.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "fan_in_fan_out",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    }
)
# LoRA initialisations that leave the base's weights as they are. Others make a base of their own, which the adapter is
# meant for.
_INITIALISATIONS = ("gaussian", "orthogonal", "eva", "mica")
_PISSA = re.compile(r"pissa(?:_niter_([1-9]\d{0,2}))?")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What the settings of every adapter method have: the modules that it joins, by PEFT's rules.

    `target_modules` is a tuple of names (an id, or its dotted suffix), a regular expression as a string, "all-linear",
    or None for every insertion point; `exclude_modules` has the same forms and leaves points out. `layers_to_transform`
    keeps the layers of these indices, counted at `layers_pattern`. `modules_to_save` names the head.

    A method's class says what else PEFT may write: `neutral` are the values that settings which this format does not
    hold must have, `without_effect` those that enter no arithmetic, `unwritten` our fields that PEFT's class does not
    have. `in_peft` tells whether PEFT has the method at all.

    Raises:
        ConfigError: values out of range or of another type; all are named.
    """

    peft_type: ClassVar[str]
    in_peft: ClassVar[bool] = True
    neutral: ClassVar[Mapping[str, Any]] = {}
    without_effect: ClassVar[frozenset[str]] = frozenset()
    unwritten: ClassVar[frozenset[str]] = frozenset()

    target_modules: Patterns = None
    exclude_modules: Patterns = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    modules_to_save: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ConfigError("; ".join(problems))

    def problems(self) -> list[str]:
        """What is wrong with the values."""
        problems = [
            *pattern_problems("target_modules", self.target_modules),
            *pattern_problems("exclude_modules", self.exclude_modules),
            *_layer_problems(self),
        ]
        if self.modules_to_save is not None and not _are_names(self.modules_to_save):
            problems.append(f"modules_to_save must be a tuple of names, not {self.modules_to_save!r}")
        return problems

    @property
    def dropout(self) -> float:
        """The probability that an element of an adapter's input is dropped in training."""
        return 0.0

    def saved(self) -> Self:
        """The settings that the adapter has once it is saved."""
        return self

    @property
    def virtual_tokens(self) -> int:
        """How many tokens the adapter puts before the caller's."""
        return 0

    @property
    def all_biases(self) -> bool:
        """Whether every bias of the base learns, beside what stands at the chosen modules."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping of these settings."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def to_peft(self, task_type: str | None, points: Sequence[str] | None = None) -> dict[str, Any]:
        """The body of PEFT's `adapter_config.json`; of an adapter at `points`, exactly these are its `target_modules`.

        It names no base model: PEFT would look that name up on the network.
        """
        settings = {name: value for name, value in self.to_dict().items() if name not in self.unwritten}
        if points is not None:
            settings["target_modules"] = sorted(points)
        return {
            "peft_type": self.peft_type,
            "task_type": task_type,
            "base_model_name_or_path": None,
            "inference_mode": True,
            **settings,
        }

    def renamed(self, ids: Mapping[str, str]) -> Self:
        """The same settings for exactly the points that have new `ids`, by their old ones."""
        return replace(
            self,
            target_modules=tuple(ids.values()),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
        )

    def without_order(self, points: Sequence[str]) -> Self:
        """The same settings at these points, where the order of patterns says nothing.

        The first pattern that matches holds, and files, PEFT's too, hold them sorted.
        """
        del points
        return self

    @classmethod
    def from_peft(cls, body: Mapping[str, Any], where: str) -> Self:
        """Read PEFT's `adapter_config.json`; `where` names the file in errors.

        Raises:
            AdapterError: another method, or a setting that cannot be represented; all are named.
        """
        if body.get("peft_type") != cls.peft_type:
            raise AdapterError(f"{where}: peft_type is {body.get('peft_type')!r} where {cls.peft_type} is expected")
        known = {f.name for f in fields(cls)}
        refused = [
            f"{key}={value!r}"
            for key, value in sorted(body.items())
            if key not in known | _WITHOUT_EFFECT | cls.without_effect and not cls._is_neutral(key, value)
        ]
        if refused := [*refused, *cls.refused(body)]:
            raise AdapterError(f"{where}: what this runtime cannot represent: {', '.join(refused)}")
        settings = {k: _frozen(v) for k, v in body.items() if k in known and v is not None}
        try:
            return cls(**settings)
        except ConfigError as error:
            raise AdapterError(f"{where}: {error}") from error

    @classmethod
    def refused(cls, body: Mapping[str, Any]) -> list[str]:
        """Settings of PEFT's, beyond those with a neutral value, that cannot be represented."""
        del body
        return []

    @classmethod
    def _is_neutral(cls, key: str, value: object) -> bool:
        """Whether a setting of PEFT's says nothing: its neutral value, or, for one that is not known, emptiness."""
        return value in (cls.neutral.get(key), None, False, [], {})


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
            *_map_problems("rank_pattern", self.rank_pattern, rank_problems),
            *_map_problems("alpha_pattern", self.alpha_pattern, alpha_problems),
            *super().problems(),
            *dropout_problems("lora_dropout", self.lora_dropout),
        ]
        problems += [
            f"{name} must be true or false, not {value!r}"
            for name, value in (("use_rslora", self.use_rslora), ("use_dora", self.use_dora))
            if not isinstance(cast(object, value), bool)
        ]
        if self.bias not in BIASES:
            problems.append(f"bias must be {', '.join(BIASES[:-1])} or {BIASES[-1]}, not {_short(self.bias)}")
        elif self.bias != "none" and (self.use_dora or self.is_pissa):
            problems.append(f"bias {self.bias!r} is for LoRA without use_dora and without PiSSA")
        if self.init_lora_weights is not True and not self.is_pissa:
            known = "true, 'pissa' or 'pissa_niter_N'"
            problems.append(f"init_lora_weights must be {known}, not {_short(self.init_lora_weights)}")
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


def rank_problems(name: str, value: object) -> list[str]:
    """What is wrong with a rank."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK:
        return []
    return [f"{name} must be a whole number from 1 to {MAX_RANK}, not {_short(value)}"]


def alpha_problems(name: str, value: object) -> list[str]:
    """What is wrong with a factor."""
    if is_number(value) and 0 < cast(float, value) < 1e30:
        return []
    return [f"{name} must be a number above 0, not {_short(value)}"]


def _map_problems(name: str, value: object, problems_of: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return [f"{name} must map patterns to numbers, not {_short(value)}"]
    entries = cast(Mapping[object, object], value)
    problems: list[str] = []
    if len(entries) > MOST_NAMES or sum(isinstance(p, str) and not is_plain(p) for p in entries) > MOST_PATTERNS:
        return [f"{name} has more than {MOST_NAMES:,} entries, or {MOST_PATTERNS} that are patterns and no names"]
    for pattern, number in entries.items():
        problems += _regex_problems(name, pattern)
        problems += problems_of(f"{name}[{_short(pattern)}]", number)
    return problems


def pattern_problems(name: str, value: object) -> list[str]:
    """What is wrong with patterns of ids."""
    if isinstance(value, str):
        return _regex_problems(name, value)
    return (
        []
        if value is None or _are_names(value)
        else [f"{name} must be a text or a tuple of names, not {_short(value)}"]
    )


def dropout_problems(name: str, value: object) -> list[str]:
    """What is wrong with a probability to drop."""
    if is_number(value) and 0 <= cast(float, value) < 1:
        return []
    return [f"{name} must be in [0, 1), not {value!r}"]


def _layer_problems(config: AdapterConfig) -> list[str]:
    layers: object = config.layers_to_transform
    pattern: object = config.layers_pattern
    problems: list[str] = []
    indices = cast(tuple[object, ...], layers if isinstance(layers, tuple) else () if layers is None else (layers,))
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices):
        problems.append(f"layers_to_transform must hold layer numbers from 0, not {_short(layers)}")
    if indices and isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        problems.append("layers_to_transform needs target_modules as names: a regular expression can name the layers")
    names: object = (pattern,) if isinstance(pattern, str) else () if pattern is None else pattern
    if not _are_names(names):
        return [*problems, f"layers_pattern must be a text or a tuple of texts, not {_short(cast(object, pattern))}"]
    strange = [name for name in cast(tuple[str, ...], names) if not is_plain(name)]
    if strange or len(cast(tuple[str, ...], names)) > MOST_PATTERNS:
        problems.append(f"layers_pattern must be a name before a layer's number, as 'layers', not {_short(strange)}")
    return problems


def _regex_problems(setting: str, pattern: object) -> list[str]:
    if not isinstance(pattern, str):
        return [f"{setting}: {_short(pattern)} is not a text"]
    problem = pattern_problem(pattern)
    return [] if problem is None else [f"{setting}: {problem}"]


def is_number(value: object) -> bool:
    """An int or a finite float; whether an int is small enough for a float is the caller's to bound."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (isinstance(value, int) or math.isfinite(value))
    )


def _are_names(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(cast(tuple[object, ...], value)) <= MOST_NAMES
        and all(isinstance(x, str) for x in cast(tuple[object, ...], value))
    )


def _short(value: object) -> str:
    """A value for a message, at most 60 characters of it."""
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python prints
        return "an enormous number"
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(cast(tuple[object, ...], value))
    return dict(cast(Mapping[str, object], value)) if isinstance(value, Mapping) else value


def _frozen(value: Any) -> Any:
    return tuple(cast(list[object], value)) if isinstance(value, list) else value
