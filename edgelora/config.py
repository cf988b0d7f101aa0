"""LoRA's settings with PEFT's names, defaults and pattern semantics; to and from `adapter_config.json`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from edgelora.errors import AdapterError, ConfigError

Patterns = tuple[str, ...] | str | None

# What PEFT 0.21 may say that changes the adapter's arithmetic and that this format does not hold.
_REFUSED: dict[str, Any] = {
    "use_dora": False,
    "bias": "none",
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


@dataclass(frozen=True)
class LoraConfig:
    """Settings of a LoRA adapter (peft.LoraConfig; the paper is arXiv:2106.09685).

    `target_modules` is a tuple of names (an id, or its dotted suffix), a regular expression as a
    string, or "all-linear". `rank_pattern` and `alpha_pattern` map patterns of ids to other values.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: Patterns = None
    exclude_modules: Patterns = None
    lora_dropout: float = 0.0
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    use_rslora: bool = False
    modules_to_save: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        ranks = [self.r, *self.rank_pattern.values()]
        problems = [
            text
            for wrong, text in (
                (
                    any(not isinstance(r, int) or r < 1 for r in ranks),
                    f"ranks must be whole numbers from 1, not {ranks}",
                ),
                (self.lora_alpha <= 0, f"lora_alpha must be above 0, not {self.lora_alpha}"),
                (any(a <= 0 for a in self.alpha_pattern.values()), "alpha_pattern holds a value that is not above 0"),
                (not 0 <= self.lora_dropout < 1, f"lora_dropout must be in [0, 1), not {self.lora_dropout}"),
            )
            if wrong
        ]
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            problems += _regex_problem(pattern)
        for value in (self.target_modules, self.exclude_modules):
            if isinstance(value, str):
                problems += _regex_problem(value)
        if problems:
            raise ConfigError("; ".join(problems))

    def rank(self, point_id: str) -> int:
        """The rank at a point: `rank_pattern`'s first matching entry, else `r`."""
        return int(self.rank_pattern.get(_pattern_key(self.rank_pattern, point_id), self.r))

    def scale(self, point_id: str) -> float:
        """What the low-rank product is multiplied by: alpha/r, or alpha/√r for rsLoRA (arXiv:2312.03732)."""
        alpha = float(self.alpha_pattern.get(_pattern_key(self.alpha_pattern, point_id), self.lora_alpha))
        rank = self.rank(point_id)
        return alpha / rank**0.5 if self.use_rslora else alpha / rank

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping of these settings."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    def to_peft(self, task_type: str | None, base_name: str) -> dict[str, Any]:
        """The body of PEFT's `adapter_config.json`."""
        return {
            "peft_type": "LORA",
            "task_type": task_type,
            "base_model_name_or_path": base_name,
            "inference_mode": True,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "use_dora": False,
            **self.to_dict(),
        }

    @classmethod
    def from_peft(cls, body: Mapping[str, Any], where: str) -> LoraConfig:
        """Read PEFT's `adapter_config.json`.

        Raises:
            AdapterError: another method than LoRA, or a setting that cannot be represented; all are named.
        """
        if body.get("peft_type") != "LORA":
            raise AdapterError(f"{where}: peft_type is {body.get('peft_type')!r}; this runtime loads LORA")
        refused = [
            f"{k}={body[k]!r}" for k, neutral in _REFUSED.items() if body.get(k, neutral) not in (neutral, [], {})
        ]
        if refused:
            raise AdapterError(f"{where}: cannot be represented: {', '.join(refused)}")
        known = {f.name for f in fields(cls)}
        settings = {k: _frozen(v) for k, v in body.items() if k in known and v is not None}
        try:
            return cls(**settings)
        except (TypeError, ConfigError) as error:
            raise AdapterError(f"{where}: {error}") from error


def _pattern_key(patterns: Iterable[str], point_id: str) -> str:
    """PEFT's get_pattern_key: the first pattern that matches the id or a dotted suffix of it."""
    for key in patterns:
        if re.match(rf"(.*\.)?({key})$", point_id):
            return key
    return point_id


def _regex_problem(pattern: str) -> list[str]:
    try:
        re.compile(pattern)
    except re.error as error:
        return [f"{pattern!r} is not a regular expression ({error})"]
    return []


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return dict(value) if isinstance(value, Mapping) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
