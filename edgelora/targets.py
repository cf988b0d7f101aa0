"""Name patterns -> insertion points, by PEFT's rules (`peft.tuners.tuners_utils.check_target_module_exists`)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace

from edgelora.config import AdapterConfig, Patterns
from edgelora.errors import ConfigError
from edgelora.manifest import BIAS_OP, RECURRENT, InsertionPoint
from edgelora.patterns import fullmatch

ALL_LINEAR = "all-linear"
_NEAREST, _HINTED = 3, 20


def select_points(points: Sequence[InsertionPoint], config: AdapterConfig) -> tuple[InsertionPoint, ...]:
    """The points that the settings name, in their order: all where `target_modules` is None, none where it is empty.

    Where all biases learn, every other place that has one follows, as one for a bias alone (`op` "Bias").

    "all-linear" leaves convolutions and recurrent layers out, as PEFT does. Unlike PEFT, `layers_to_transform` also
    restricts "all-linear".

    Raises:
        ConfigError: a pattern that matches nothing (each with the nearest names), or nothing left at all.
    """
    places, points = points, [point for point in points if point.op != BIAS_OP]
    ids = [point.id for point in points]
    targets = config.target_modules
    problems = [
        *_unmatched("target_modules", targets, ids),
        *_unmatched("exclude_modules", config.exclude_modules, ids),
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    named = [p for p in points if targets is None or matches(targets, p.id)]
    if targets == ALL_LINEAR:
        named = [p for p in points if not p.kernel and p.op not in RECURRENT]
        if points and not named:
            raise ConfigError(
                f"all-linear leaves convolutions and recurrent layers out, and all {len(points)} insertion points are "
                "of these: name them, all by 're:.*'"
            )
    chosen = tuple(p for p in named if not _excluded(config, p.id) and _in_layers(config, p.id))
    if named and not chosen:
        raise ConfigError(
            f"target_modules names {len(named)} insertion points and exclude_modules, layers_to_transform and "
            "modules_to_save leave none of them"
        )
    taken = {point.id for point in chosen}
    others = [p for p in places if p.bias and p.id not in taken] if config.all_biases else []
    return (*chosen, *(replace(p, op=BIAS_OP) for p in others))


def matches(patterns: Patterns, point_id: str) -> bool:
    """Whether the id is named: by itself or a dotted suffix, by the whole regular expression, or by all-linear."""
    if patterns is None:
        return False
    if isinstance(patterns, str):
        return patterns == ALL_LINEAR or fullmatch(patterns, point_id)
    return any(point_id == name or point_id.endswith(f".{name}") for name in patterns)


def _excluded(config: AdapterConfig, point_id: str) -> bool:
    """By `exclude_modules`, or because it lies in a module that is trained whole."""
    saved = config.modules_to_save or ()
    return matches(config.exclude_modules, point_id) or any(_lies_in(name, point_id) for name in saved)


def _lies_in(module: str, point_id: str) -> bool:
    """Whether the module is one of those that the id leads through."""
    return f".{module}." in f".{point_id}."


def _in_layers(config: AdapterConfig, point_id: str) -> bool:
    """Whether the first number in the id, or the one after `layers_pattern`, is one of the layers asked for.

    A point that `target_modules` names in full is taken whatever its layer, as PEFT does.
    """
    layers, targets = config.layers_to_transform, config.target_modules
    if layers is None or layers == () or (isinstance(targets, tuple) and point_id in targets):
        return True
    pattern = config.layers_pattern
    names = (pattern,) if isinstance(pattern, str) else pattern
    expressions = (
        [rf"(?:^|.*?\.){name}\.(?P<idx>\d{{1,9}})\." for name in names]
        if names
        else [r".*?\.[^.]*\.(?P<idx>\d{1,9})\."]
    )
    found = next((m for e in expressions if (m := re.match(e, point_id))), None)
    return found is not None and int(found["idx"]) in ((layers,) if isinstance(layers, int) else layers)


def _unmatched(setting: str, patterns: Patterns, ids: Sequence[str]) -> list[str]:
    """A line for each pattern that names no point."""
    if patterns is None or patterns == ALL_LINEAR:
        return []
    each: tuple[Patterns, ...] = (patterns,) if isinstance(patterns, str) else tuple((name,) for name in patterns)
    lines: list[str] = []
    for one in each:
        if not any(matches(one, point_id) for point_id in ids):
            shown = one if isinstance(one, str) else str(one[0] if one else "")
            if not isinstance(patterns, str) and (shown == ALL_LINEAR or shown.startswith("re:")):
                lines.append(f"{setting}: {shown} stands alone, without other names")
                continue
            near = nearest(shown, ids) if len(lines) < _HINTED else []
            hint = f"the nearest names are {', '.join(near)}" if near else "`edgelora points` lists the names"
            lines.append(f"{setting}: {shown!r} matches no insertion point; {hint}")
    return lines


def nearest(pattern: str, ids: Sequence[str]) -> list[str]:
    """The ids' suffixes that are most like `pattern`."""
    suffixes: dict[str, None] = {}
    for point_id in ids:
        parts = point_id.split(".")
        suffixes.update((".".join(parts[i:]), None) for i in range(len(parts) - 1, -1, -1))
    return difflib.get_close_matches(pattern, list(suffixes), _NEAREST, cutoff=0.4)
