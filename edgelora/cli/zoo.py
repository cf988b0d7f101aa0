"""The verb that certifies whole architectures: zoo."""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path
from typing import Any

from edgelora.cli.common import Verbs, add_verb, desktop, emit, note
from edgelora.errors import DataError
from edgelora.files import write_atomic

FAILED = 1
_RESULTS = Path("zoo-results.jsonl")


def add_verbs(verbs: Verbs) -> None:
    """Register the verb."""
    parser = add_verb(
        verbs,
        "zoo",
        run_zoo,
        "Certify whole architectures: convert, compare gradients with torch, take a training step (desktop).",
        "edgelora zoo model.onnx mypackage.mymodule:factory",
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="as for convert: .onnx, directory, module:factory (default: the zoo)",
    )
    parser.add_argument(
        "--exporter",
        nargs="+",
        choices=("dynamo", "torchscript"),
        default=["dynamo", "torchscript"],
        help="torch exporters, tried in turn until every point trains (default: both)",
    )
    parser.add_argument("--only", metavar="PATTERN", help="of the zoo, those whose family/name this fits: 'vision/*'")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as docs/zoo.md")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help=f"keep certificates here, and do none twice (default for the zoo: {_RESULTS})",
    )
    parser.add_argument("--retry", action="store_true", help="run again what the results say does not train")
    parser.add_argument("--time-limit", type=float, default=180.0, metavar="S", help="seconds for each (180)")


def run_zoo(options: argparse.Namespace) -> int:
    """A line for each architecture as it goes, the table at the end."""
    runner, report = desktop("certify.zoo"), desktop("certify.zoo_report")
    chosen: list[str] = list(options.sources)
    results: Path | None = options.results
    if not chosen:
        results = results or _RESULTS
        pattern = options.only or "*"
        known = desktop("zoo").architectures()
        chosen = [a.source for a in known if fnmatch.fnmatch(f"{a.family}/{a.name}", pattern)]
        if not chosen:
            raise DataError(f"--only {pattern}: none of the {len(known)} architectures is called that")
    certificates: list[Any] = []
    for found in runner.run(chosen, options.exporter, results, options.time_limit, options.retry):
        certificates.append(found)
        note(report.line(found))
    rows = runner.best(certificates)
    if options.markdown is not None:
        write_atomic(options.markdown, report.markdown(rows, report.versions()).encode())
    result = {source: [c.to_dict() for c in found] for source, found in rows.items()}
    emit(options, {"architectures": result, "summary": report.summary(rows)}, report.text(rows))
    return FAILED if any(found[0].unexpected for found in rows.values()) else 0
