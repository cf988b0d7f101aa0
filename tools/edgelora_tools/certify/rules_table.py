"""The table of operators: which carry a gradient, how, and what proves it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import onnx

from edgelora_tools.certify.bodies import has_differentiable_body
from edgelora_tools.certify.node_tests import Outcome
from edgelora_tools.expansions import EXPANSIONS
from edgelora_tools.gradients import NON_DIFFERENTIABLE, QUANTIZERS, RULES
from edgelora_tools.lowering import DOMAIN
from edgelora_tools.normalize import NEWEST_OPSET, OLDEST_OPSET

Key = tuple[str, str]

RULE, STRAIGHT, EXPANSION, FUNCTION = "rule", "rule, straight through", "expansion", "function body"
NOTHING, MISSING = "carries no gradient", "no rule"

_OPSETS = range(OLDEST_OPSET, NEWEST_OPSET + 1)
_CASE_LISTS = ("tests.gradients.cases", "tests.expansions.cases")
_SOURCES = Path(__file__).parents[3]


@dataclass(frozen=True)
class Operator:
    """An operator of the table.

    `how` is one of the constants above; `opsets` the versions of its domain from 11 to 23 that have it; `cases`
    and `node_tests` count what proves it (None where that is not known).
    """

    domain: str
    op: str
    opsets: tuple[int, ...]
    how: str
    cases: int | None = None
    node_tests: tuple[int, int] | None = None

    @property
    def differentiable(self) -> bool:
        return self.how in (RULE, STRAIGHT, EXPANSION, FUNCTION)

    def to_dict(self) -> dict[str, Any]:
        """The entry for machines."""
        entry: dict[str, Any] = {
            "op": self.op,
            "domain": self.domain,
            "opsets": list(self.opsets),
            "differentiable": self.differentiable,
            "how": self.how,
            "cases": self.cases,
        }
        if self.node_tests is not None:
            entry["node_tests"] = {"passed": self.node_tests[0], "total": self.node_tests[1]}
        return entry


def operators(outcomes: Sequence[Outcome] = ()) -> list[Operator]:
    """The operators of the opsets that EdgeLoRA reads, with a rule, an expansion or none; differentiable ones first."""
    tested, proven = by_operator(outcomes), cases()
    standard = {
        ("", s.name) for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and opsets_of("", s.name)
    }
    ours = {key for key in (*RULES, *EXPANSIONS, *NON_DIFFERENTIABLE) if key[0] != DOMAIN}
    found = []
    for domain, op in sorted(key for key in standard | ours if opsets_of(*key)):
        key = (domain, op)
        how = how_of(key)
        count = None if proven is None or how == MISSING else proven[key]
        found.append(Operator(domain, op, opsets_of(domain, op), how, count, tested.get(key)))
    return sorted(found, key=lambda o: (not o.differentiable, o.how == MISSING, o.domain, o.op))


def how_of(key: Key) -> str:
    """By what means the operator is differentiated."""
    if key in RULES:
        return STRAIGHT if key in QUANTIZERS else RULE
    if key in EXPANSIONS:
        return EXPANSION
    if key in NON_DIFFERENTIABLE:
        return NOTHING
    return FUNCTION if key[0] == "" and has_differentiable_body(key[1]) else MISSING


@cache
def opsets_of(domain: str, op: str) -> tuple[int, ...]:
    """The versions of the domain, from 11 to 23 for ONNX's own, at which the operator exists and is not deprecated.

    What ONNX Runtime adds to ONNX's own domain is there at all of them.
    """
    if domain:
        versions = {
            s.since_version for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == (domain, op)
        }
        return tuple(sorted(versions)) or (1,)
    found = []
    for opset in _OPSETS:
        try:
            if not onnx.defs.get_schema(op, opset, "").deprecated:
                found.append(opset)
        except onnx.defs.SchemaError:
            continue
    known = any((s.domain, s.name) == ("", op) for s in onnx.defs.get_all_schemas_with_history())
    return tuple(found) if known else tuple(_OPSETS)


@cache
def cases() -> Counter[Key] | None:
    """How many gradient cases and expansion cases each operator has; None without the project's tests."""
    if not (_SOURCES / "tests" / "gradients" / "cases").is_dir():
        return None
    if str(_SOURCES) not in sys.path:
        sys.path.append(str(_SOURCES))
    lists = [importlib.import_module(name).CASES for name in _CASE_LISTS]
    return Counter((case.domain, case.op) for case in chain(*lists))


def by_operator(outcomes: Sequence[Outcome]) -> dict[Key, tuple[int, int]]:
    """Passed and total node tests of each operator, the excluded ones not counted."""
    counts: dict[Key, tuple[int, int]] = {}
    for outcome in outcomes:
        if outcome.status != "excluded":
            passed, total = counts.get(outcome.operator, (0, 0))
            counts[outcome.operator] = (passed + (outcome.status == "passed"), total + 1)
    return counts


def formula(key: Key) -> str:
    """The docstring of the operator's rule or expansion."""
    function = RULES.get(key) or EXPANSIONS.get(key)
    return inspect.getdoc(function) or "" if function is not None else ""


def case_ids(key: Key) -> list[str]:
    """The names of the operator's cases."""
    if cases() is None:
        return []
    lists = [importlib.import_module(name).CASES for name in _CASE_LISTS]
    return [case.id for case in chain(*lists) if (case.domain, case.op) == key]


def spans(versions: Sequence[int]) -> str:
    """Versions as text: 11–23, or 20, 22–23."""
    if not versions:
        return "–"
    parts, start = [], versions[0]
    for here, after in zip(versions, [*versions[1:], None], strict=True):
        if after != here + 1:
            parts.append(str(here) if start == here else f"{start}–{here}")
            start = after if after is not None else start
    return ", ".join(parts)


def failures(outcomes: Sequence[Outcome]) -> Mapping[str, Sequence[Outcome]]:
    """Failed outcomes by reason."""
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status == "failed":
            grouped.setdefault(outcome.reason, []).append(outcome)
    return grouped
