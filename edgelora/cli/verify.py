"""The verb that verifies a bundle: check."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np

from edgelora.bundle import Bundle
from edgelora.check import Verdict, check, store_verdict
from edgelora.cli.common import (
    Verbs,
    add_bundle,
    add_verb,
    desktop,
    emit,
    end_progress,
    progress_line,
    settings_of,
    table,
)
from edgelora.cli.describe import cosines_text, quantized_text
from edgelora.errors import DataError
from edgelora.parity import SPREADS

CHECK_FAILED = 1


def add_verbs(verbs: Verbs) -> None:
    """Register the verb."""
    parser = add_verb(
        verbs,
        "check",
        run_check,
        "Verify a bundle: parity with its source, gradients against finite differences.",
        "edgelora check home.edgelora --source model.onnx --inputs samples.npz",
    )
    add_bundle(parser, store=False)
    parser.add_argument("--source", metavar="SOURCE", help="run this source on --inputs too (desktop)")
    parser.add_argument("--inputs", type=Path, metavar="FILE.npz", help="inputs by name to compare on")
    parser.add_argument("--exporter", default="dynamo", help="for torch sources, as at conversion")


def run_check(options: argparse.Namespace) -> int:
    """Verify and store the verdict."""
    bundle = Bundle.open(options.bundle, settings_of(options))
    extra = []
    if (options.inputs is None) != (options.source is None):
        raise DataError("--inputs and --source go together: the source is run on these inputs")
    if options.inputs is not None:
        try:
            with np.load(options.inputs, allow_pickle=False) as archive:
                feeds = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{options.inputs}: not an .npz file of arrays ({error})") from error
        missing = {s.name for s in bundle.manifest.inputs} - set(feeds)
        if missing:
            raise DataError(f"{options.inputs}: no array for {', '.join(sorted(missing))}")
        specs = bundle.manifest.inputs
        feeds |= {s.name: feeds[s.name].astype(s.dtype) for s in specs}
        source = desktop("sources").open_source(
            options.source, options.exporter, task=bundle.manifest.task, check_tokenizer=False
        )
        wanted = desktop("compile").source_outputs(source, bundle.manifest, feeds)
        extra = [({s.name: feeds[s.name] for s in specs}, wanted)]
    verdict = check(bundle, extra, lambda name: progress_line(f"checking {name}"))
    end_progress()
    store_verdict(bundle, verdict)
    text = points_text(verdict)
    graphs = [(g.file, g.where, g.error, g.allowed, "ok" if g.passed else "WRONG") for g in verdict.graphs]
    text = f"{text}\n\n{table(graphs, ('graph', 'largest at', 'relative gap', 'allowed', ''))}"
    by_gap = verdict.divergence is None  # else answers decide, whatever the gap
    outputs = [
        (o.output, o.error, o.allowed if by_gap else None, "ok" if o.passed else "WRONG") for o in verdict.outputs
    ]
    text = f"{table(outputs, ('output', 'relative gap', 'allowed', ''))}\n\n{text}"
    lines = [*quantized_text(bundle.manifest), *unsure_text(verdict), verdict_text(verdict)]
    emit(options, verdict.to_dict(), "\n".join([text, "", *lines]))
    return 0 if verdict.passed else CHECK_FAILED


def points_text(verdict: Verdict) -> str:
    """The table of the points; where the float32 gradients decide, with their cosine and size before the verdict."""
    nearness = {q.id: (q.cosine, q.size) for q in verdict.quantized}
    rows: list[tuple[object, ...]] = []
    asked = {p.id for p in verdict.points}
    head = ["point", "gradient", "differences", "relative gap", ""]
    for p in verdict.points:
        extra = nearness.get(p.id, ("", "")) if nearness else ()
        rows.append((p.id, p.analytic, p.numeric, p.error, *extra, "ok" if p.passed else "WRONG"))
    for q in verdict.quantized:
        if q.id not in asked:
            rows.append((q.id, "", "", "", q.cosine, q.size, "ok" if q.passed else "WRONG"))
    if nearness:
        head[-1:] = ["float32 cosine", "size", ""]
    return table(rows, tuple(head))


def unsure_text(verdict: Verdict) -> list[str]:
    """A line for each output, and graph, that is held against what is so far from itself that it is held to that."""
    lines: list[str] = []
    for v in verdict.outputs:
        if SPREADS * v.spread >= v.allowed:
            apart = f"the source's own kernels are {v.spread:.1e} apart here, of which parity allows"
            lines.append(f"{v.output}: {apart} {_of_spread(v.spread, v.allowed)}")
    for g in verdict.graphs:
        if g.spread:
            apart = f"the graph it is held against moves by {g.spread:.1e} at {g.where} if its inputs are rounded anew"
            lines.append(f"{g.file}: {apart}, of which is allowed {_of_spread(g.spread, g.allowed)}")
    return lines


def _of_spread(spread: float, allowed: float) -> str:
    return f"three times, {allowed:.1e}" if np.isclose(SPREADS * spread, allowed) else f"no more than {allowed:.1e}"


def verdict_text(verdict: Verdict) -> str:
    """The verdict in a line."""
    said = f"check {'passed' if verdict.passed else 'FAILED'}: {parity_text(verdict)}"
    worst = max((v.error for v in (*verdict.points, *verdict.graphs)), default=0.0)
    if not (verdict.quantized or verdict.unreached):
        return f"{said}, largest gradient error {worst:.1e} over {len(verdict.points)} points"
    cosines = cosines_text({q.id: q.cosine for q in verdict.quantized}, verdict.unreached)
    asked = f"differences at {len(verdict.points)} points, coarse for rounded outputs, within {worst:.1e}"
    return f"{said}, {cosines}; {asked}"


def parity_text(verdict: Verdict) -> str:
    """How near the source is: by outputs, or where these do not decide, by answers."""
    if (found := verdict.divergence) is None:
        return f"parity {verdict.parity:.1e} on {verdict.parity_samples} samples"
    return (
        f"answers {found.written:.4f} nats a token from the source's on {found.tokens} tokens that it wrote (worst "
        f"{found.worst:.2f}), {found.drawn:.4f} on random ones (at most {found.most:.2f})"
    )
