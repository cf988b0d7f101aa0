"""What docs/operators.md says, read back: the rows of its tables and the node tests that it admits fail."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "operators.md"
REMEDY = "docs/operators.md is stale: make it anew with `edgelora rules --markdown > docs/operators.md`"


@cache
def sections() -> dict[str, list[str]]:
    """The document's lines by heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        found.setdefault(heading, []).append(line)
    return found


def cells(heading: str) -> list[list[str]]:
    """The rows of a section's table, without its header."""
    rows = [line for line in sections()[heading] if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@cache
def node_tests() -> dict[str, tuple[int, int]]:
    """Passed and total node tests by operator."""
    rows = [*cells("Differentiable"), *cells("Node tests of other operators")]
    counts = {row[0]: re.fullmatch(r"(\d+)/(\d+)", row[-1]) for row in rows}
    return {name: (int(match[1]), int(match[2])) for name, match in counts.items() if match}


@cache
def failing() -> frozenset[str]:
    """The node tests that are documented to fail, each with its reason."""
    return frozenset(re.findall(r"`(test_\w+)`", "\n".join(sections()["Node tests that fail"])))
