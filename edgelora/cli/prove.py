"""The verb about gradient rules: rules, the table of operators and what proves each entry."""

from __future__ import annotations

import argparse
from typing import Any

from edgelora.cli.common import Verbs, add_verb, desktop, emit, end_progress, progress_line
from edgelora.errors import DataError

NODE_TEST_FAILED = 1


def add_verbs(verbs: Verbs) -> None:
    """Register the verb."""
    parser = add_verb(
        verbs,
        "rules",
        run_rules,
        "List the operators that a gradient passes, and test the rules (desktop).",
        "edgelora rules --node-tests --op Conv",
    )
    parser.add_argument("--op", metavar="NAME", help="one operator in detail: its formula, its cases, its node tests")
    parser.add_argument(
        "--node-tests",
        action="store_true",
        help="differentiate ONNX's backend node tests and compare with finite differences; status 1 if one fails",
    )
    parser.add_argument("--markdown", action="store_true", help="print docs/operators.md (with all node tests)")


def run_rules(options: argparse.Namespace) -> int:
    """The table, or one operator, or the report of the node tests."""
    rules_table = desktop("certify.rules_table")
    known = {(o.domain, o.op): o for o in rules_table.operators()}
    if options.op is not None and options.op not in {op for _, op in known}:
        raise DataError(f"no operator {options.op}: `edgelora rules` lists them all (names are as ONNX writes them)")
    outcomes: list[Any] = []
    if options.node_tests or options.markdown:
        outcomes = _node_tests(options.op)
    report = desktop("certify.report")
    found = rules_table.operators(outcomes)
    chosen = [o for o in found if options.op in (None, o.op)]
    if options.markdown:
        print(report.markdown(found, outcomes), end="")
        return 0
    result: dict[str, Any] = {"operators": [o.to_dict() for o in chosen]}
    if options.node_tests:
        emit(options, {**result, "node_tests": report.summary(outcomes)}, report.text(outcomes))
        return NODE_TEST_FAILED if any(o.status == "failed" for o in outcomes) else 0
    emit(options, result, report.table_text(chosen) if options.op is None else report.details_text(chosen))
    return 0


def _node_tests(operator: str | None) -> list[Any]:
    node_tests = desktop("certify.node_tests")
    progress_line("loading ONNX's node tests")
    tests = node_tests.select(operator)
    outcomes = node_tests.certify(tests, progress_line)
    end_progress()
    return outcomes
