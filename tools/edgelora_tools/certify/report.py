"""The table of operators and the outcomes of node tests, as text, for machines, and as docs/operators.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from edgelora.cli.common import table
from edgelora_tools.certify.node_tests import Outcome
from edgelora_tools.certify.rules_table import NOTHING, Key, Operator, by_operator, case_ids, failures, formula, spans
from edgelora_tools.normalize import NEWEST_OPSET, OLDEST_OPSET

_INTRODUCTION = f"""\
# Operators

Made by `edgelora rules --markdown > docs/operators.md`; do not edit. An operator is differentiated by a *rule*
([how to write one](gradient-rules.md)), by an *expansion* into operators that have rules, or through the
*function body* by which ONNX itself defines it. *Opsets* are the versions from {OLDEST_OPSET} to {NEWEST_OPSET}
that have it. *Cases* are checked against finite differences in float64 and run on ONNX Runtime in float32.
*Node tests* are those of ONNX's own backend suite that ask for a gradient: passed of all.
"""


def row(operator: Operator) -> tuple[str, str, str, int | None]:
    """The columns that need no node test to be run: name, opsets, how, cases."""
    return name_of((operator.domain, operator.op)), spans(operator.opsets), operator.how, operator.cases


def name_of(key: Key) -> str:
    """An operator by name, with its domain where that is not ONNX's own."""
    return "::".join(part for part in key if part)


def table_text(operators: Sequence[Operator]) -> str:
    """The table for a terminal."""
    differentiable = sum(o.differentiable for o in operators)
    quiet = sum(o.how == NOTHING for o in operators)
    end = (
        f"{differentiable} operators are differentiable, {quiet} carry no gradient, "
        f"{len(operators) - differentiable - quiet} have no rule"
    )
    return f"{table([row(o) for o in operators], ('operator', 'opsets', 'how', 'cases'))}\n\n{end}"


def details_text(operators: Sequence[Operator]) -> str:
    """One operator, in each domain that has it: formula and cases."""
    parts = []
    for operator in operators:
        name, opsets, how, _ = row(operator)
        key = (operator.domain, operator.op)
        ids = case_ids(key)
        lines = [f"{name}: {how} (opsets {opsets})", *(f"  {line}".rstrip() for line in formula(key).splitlines())]
        parts.append("\n".join([*lines, *([f"{len(ids)} cases:"] if ids else []), *(f"  {i}" for i in ids)]))
    return "\n\n".join(parts)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The outcomes for machines."""
    counts = Counter(o.status for o in outcomes)
    return {
        "passed": counts["passed"],
        "total": counts["passed"] + counts["failed"],
        "operators": [
            {"op": op, "domain": domain, "passed": passed, "total": total}
            for (domain, op), (passed, total) in sorted(by_operator(outcomes).items())
        ],
        "failures": [
            {"test": o.name, "op": o.operator[1], "domain": o.operator[0], "reason": o.reason}
            for o in outcomes
            if o.status == "failed"
        ],
        "notes": dict(Counter(o.note for o in outcomes if o.status == "passed" and o.note)),
        "excluded": dict(Counter(o.reason for o in outcomes if o.status == "excluded")),
    }


def text(outcomes: Sequence[Outcome]) -> str:
    """The outcomes for a terminal: by operator, then totals, exclusions, how data were moved, and every failure."""
    rows = [(name_of(key), passed, total) for key, (passed, total) in counts_of(outcomes)]
    parts = [table(rows, ("operator", "passed", "total")), totals_text(outcomes)]
    excluded = Counter(o.reason for o in outcomes if o.status == "excluded").most_common()
    if excluded:
        parts.append("\n".join(["not asked for a gradient:", *(f"  {n:4} {reason}" for reason, n in excluded)]))
    notes = Counter(o.note for o in outcomes if o.status == "passed" and o.note).most_common()
    if notes:
        parts.append("\n".join(["passed otherwise than as given:", *(f"  {n:4} {note}" for note, n in notes)]))
    failed = [f"  {o.name}: {o.reason}" for o in outcomes if o.status == "failed"]
    if failed:
        parts.append("\n".join(["failed:", *failed]))
    return "\n\n".join(parts)


def counts_of(outcomes: Sequence[Outcome]) -> list[tuple[tuple[str, str], tuple[int, int]]]:
    """Passed and total by operator, in order."""
    return sorted(by_operator(outcomes).items())


def totals_text(outcomes: Sequence[Outcome]) -> str:
    """The totals in a line."""
    counts = Counter(o.status for o in outcomes)
    total = counts["passed"] + counts["failed"]
    share = f" ({100 * counts['passed'] / total:.1f} %)" if total else ""
    return f"{counts['passed']} of {total} node tests pass{share}; {counts['excluded']} ask for no gradient"


def tflite_text() -> str:
    """The operators of TFLite that have a translation (needs the extra `tflite`)."""
    from edgelora_tools.sources.tflite.operators import TRANSLATIONS

    return ", ".join(f"`{kind}`" for kind in sorted(TRANSLATIONS))


def markdown(operators: Sequence[Operator], outcomes: Sequence[Outcome]) -> str:
    """docs/operators.md."""
    lines = [_INTRODUCTION, totals_text(outcomes) + ".", "", "## Differentiable", ""]
    lines += _rows([o for o in operators if o.differentiable], ("operator", "opsets", "how", "cases", "node tests"))
    others = [o for o in operators if not o.differentiable]
    lines += ["", "## Not differentiable", "", "Outputs that carry no gradient: integers, truth values, steps.", ""]
    lines += [_names([o for o in others if o.how == NOTHING])]
    lines += ["", "## Without a rule", "", _names([o for o in others if o.how != NOTHING])]
    lines += ["", "## Read from TFLite", "", f"{tflite_text()}"]
    lines += ["", "## Node tests of other operators", "", "Function bodies of operators that are not above, too.", ""]
    listed = {(o.domain, o.op) for o in operators if o.differentiable}
    lines += ["| operator | node tests |", "|---|---:|"]
    lines += [f"| {name_of(key)} | {p}/{n} |" for key, (p, n) in counts_of(outcomes) if key not in listed]
    lines += ["", "## Node tests that fail", ""]
    failed = failures(outcomes)
    lines += ["| reason | tests |", "|---|---|"] if failed else ["None."]
    lines += [
        f"| {reason.replace('|', '/')} | {', '.join(f'`{o.name}`' for o in group)} |"
        for reason, group in failed.items()
    ]
    lines += ["", "## Node tests that ask for no gradient", "", "| because | tests |", "|---|---:|"]
    lines += [
        f"| {reason} | {n} |"
        for reason, n in Counter(o.reason for o in outcomes if o.status == "excluded").most_common()
    ]
    notes = Counter(o.note for o in outcomes if o.status == "passed" and o.note).most_common()
    lines += ["", "## Node tests that pass otherwise than as given", "", "| how | tests |", "|---|---:|"]
    lines += [f"| {note} | {n} |" for note, n in notes]
    return "\n".join(lines) + "\n"


def _rows(operators: Sequence[Operator], header: Sequence[str]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", "|---|---|---|---:|---:|"]
    for operator in operators:
        tested = "–" if operator.node_tests is None else "{}/{}".format(*operator.node_tests)
        cells = ["–" if cell is None else str(cell) for cell in row(operator)]
        lines.append(f"| {' | '.join([*cells, tested])} |")
    return lines


def _names(operators: Sequence[Operator]) -> str:
    return ", ".join(row(o)[0] for o in operators) + "."
