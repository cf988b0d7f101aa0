"""What the settings of every adapter method have, and how they stand in `adapter_config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, cast

from edgelora.config.checks import are_names, pattern_problems, short
from edgelora.errors import AdapterError, ConfigError
from edgelora.patterns import MOST_PATTERNS, is_plain

Patterns = tuple[str, ...] | str | None

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
        if self.modules_to_save is not None and not are_names(self.modules_to_save):
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


def _layer_problems(config: AdapterConfig) -> list[str]:
    layers: object = config.layers_to_transform
    pattern: object = config.layers_pattern
    problems: list[str] = []
    indices = cast(tuple[object, ...], layers if isinstance(layers, tuple) else () if layers is None else (layers,))
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices):
        problems.append(f"layers_to_transform must hold layer numbers from 0, not {short(layers)}")
    if indices and isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        problems.append("layers_to_transform needs target_modules as names: a regular expression can name the layers")
    names: object = (pattern,) if isinstance(pattern, str) else () if pattern is None else pattern
    if not are_names(names):
        return [*problems, f"layers_pattern must be a text or a tuple of texts, not {short(cast(object, pattern))}"]
    strange = [name for name in cast(tuple[str, ...], names) if not is_plain(name)]
    if strange or len(cast(tuple[str, ...], names)) > MOST_PATTERNS:
        problems.append(f"layers_pattern must be a name before a layer's number, as 'layers', not {short(strange)}")
    return problems


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(cast(tuple[object, ...], value))
    return dict(cast(Mapping[str, object], value)) if isinstance(value, Mapping) else value


def _frozen(value: Any) -> Any:
    return tuple(cast(list[object], value)) if isinstance(value, list) else value
