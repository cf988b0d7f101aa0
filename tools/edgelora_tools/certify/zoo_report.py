"""Certificates as a line, as a table for the terminal, and as docs/zoo.md."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib import metadata

from edgelora.cli.common import table
from edgelora_tools.certify.architecture import IN_PART, TRAINS, Certificate
from edgelora_tools.certify.zoo import Rows

_HEADER = ("architecture", "exporter", "trained", "parity", "gradient", "loss, before and after a step", "verdict")


def line(found: Certificate) -> str:
    """A certificate on a line."""
    figures = f"{found.trained}/{found.points} points" if found.points else ""
    gradient = f"gradient {found.gradient:.0e}" if found.gradient is not None else ""
    words = [f"{name(found.source)} ({found.exporter}): {found.verdict}", figures, gradient, found.reason]
    return f"{', '.join(w for w in words if w)} [{found.seconds:.0f} s]"


def name(source: str) -> str:
    """The zoo's own sources by family and name, others as they are."""
    return (
        source.removeprefix("edgelora_tools.zoo.").replace(":", "/")
        if source.startswith("edgelora_tools.zoo.")
        else source
    )


def summary(rows: Rows) -> str:
    """How many there are, and how many of them train."""
    verdicts = [found[0].verdict for found in rows.values()]
    whole, part = verdicts.count(TRAINS), verdicts.count(IN_PART)
    points = sum(found[0].points for found in rows.values())
    trained = sum(found[0].trained for found in rows.values() if found[0].verdict in (TRAINS, IN_PART))
    return (
        f"{len(rows)} architectures: {whole} train at every point, {part} at some, {len(rows) - whole - part} do not; "
        f"{trained:,} of {points:,} points train"
    )


def text(rows: Rows) -> str:
    """The table, the reasons below it, and the summary."""
    cells = [(name(source), *_cells(found[0])) for source, found in rows.items()]
    reasons = [f"{name(c.source)} ({c.exporter}): {c.verdict}: {c.reason}" for f in rows.values() for c in _open(f)]
    return "\n\n".join(part for part in (table(cells, _HEADER), "\n".join(reasons), summary(rows)) if part)


def _open(found: Sequence[Certificate]) -> Sequence[Certificate]:
    """The certificates that a source's reasons come from: none once it trains."""
    return () if found[0].verdict == TRAINS else found


def _cells(c: Certificate) -> tuple[str, ...]:
    return (
        c.exporter,
        f"{c.trained} of {c.points}" if c.points else "",
        "" if c.parity is None else f"{c.parity:.0e}",
        "" if c.gradient is None else f"{c.gradient:.0e}" + ("" if c.by_torch else " (differences)"),
        "" if c.loss is None else f"{c.loss[0]:.4g} → {c.loss[1]:.4g}",
        c.verdict,
    )


_INTRODUCTION = """\
# The zoo

Made by `edgelora zoo --markdown docs/zoo.md`; do not edit. Every architecture has small random weights and goes
through the real pipeline: exported, converted with an insertion point at every linear layer and convolution,
written as a bundle, and run by the device's runtime. *Trained* are the points that have a gradient. *Parity* is
the largest difference from the source, relative to its largest value, at sizes other than the export's.
*Gradient* is the largest relative difference from torch autograd over points spread over the depth, the first and
the last among them, with the same A and B added by hooks; above 1e-4 it is held against torch in float64 too, and
must be no farther from that than three times torch's own float32; points whose modules torch does not call are held
against finite differences. *Loss* is the mean square
to a random target before and after one step along the gradient. The exporters are tried in turn, dynamo first;
the row shows the one that goes farthest. Try your own: `edgelora zoo model.onnx`, or `edgelora zoo module:factory`.
"""


def markdown(rows: Rows, versions: Mapping[str, str]) -> str:
    """docs/zoo.md."""
    parts = [
        _INTRODUCTION,
        f"**{summary(rows)}.** Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
    ]
    families: dict[str, list[list[Certificate]]] = {}
    for source, found in rows.items():
        families.setdefault(name(source).partition("/")[0], []).append(found)
    for family, members in families.items():
        whole = sum(found[0].verdict == TRAINS for found in members)
        parts.append(f"## {family.replace('_', ' ')}: {whole} of {len(members)} train at every point")
        lines = [
            "| architecture | what it is | exporter | trained | parity | gradient | loss | |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for found in members:
            first = found[0]
            cells = [name(first.source).partition("/")[2] or first.source, _what(first.source), *_cells(first)]
            if first.verdict != TRAINS:
                cells[-1] += f": {first.reason}"
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def versions() -> dict[str, str]:
    """Of the libraries that the figures depend on."""
    return {package: metadata.version(package) for package in ("torch", "transformers", "onnxruntime")}


def _what(source: str) -> str:
    """The first line of the factory's docstring."""
    module, _, factory = source.partition(":")
    made = getattr(importlib.import_module(module), factory, None) if factory else None
    return ((made.__doc__ or "").strip().splitlines() or [""])[0].rstrip(".") if made else ""
