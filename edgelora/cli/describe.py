"""Verbs that describe a bundle: points, info."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgelora.bundle import Bundle
from edgelora.cli.common import Verbs, add_bundle, add_verb, emit, size_text, table
from edgelora.config import LoraConfig
from edgelora.manifest import LORA_GRAPHS, LostPoint, Manifest
from edgelora.media.images import ImageSettings
from edgelora.media.sound import SoundSettings

_MOST_NAMES = 12


def add_verbs(verbs: Verbs) -> None:
    """Register the verbs."""
    parser = add_verb(
        verbs,
        "points",
        run_points,
        "List the insertion points and what a rank costs there.",
        "edgelora points home.edgelora --rank 8",
    )
    add_bundle(parser, store=False)
    parser.add_argument("--rank", "-r", type=int, default=8, metavar="R", help="rank to count parameters for (8)")
    parser.add_argument("--explain", action="store_true", help="show how points that have no gradient are cut off")

    parser = add_verb(verbs, "info", run_info, "Describe a bundle and its verification.", "edgelora info home.edgelora")
    add_bundle(parser, store=False)


def run_points(options: argparse.Namespace) -> None:
    """The tables of insertion points, and of the places of other methods."""
    manifest = Bundle.open(options.bundle, verify=False).manifest
    LoraConfig(r=options.rank)  # refuses what is no rank
    lost = {point.id for point in manifest.lost}
    rows = [
        (
            p.id,
            p.op,
            p.in_features,
            p.out_features,
            p.layer,
            p.parameters(options.rank),
            "no" if p.id in lost else "yes",
        )
        for p in manifest.points
    ]
    total = sum(row[-2] for row in rows)
    text = table(rows, ("point", "op", "in", "out", "layer", f"r={options.rank}", "gradient"))
    share = 100 * total / max(manifest.base_parameters, 1)
    others = {
        name: [
            (p.id, p.op, p.out_features, p.layer, "yes" if p in manifest.trainable_in(name) else "no") for p in places
        ]
        for name, graphs in manifest.methods.items()
        if (places := graphs.points) is not None
    }
    result = {
        "rank": options.rank,
        "parameters": total,
        "points": [
            {**dataclasses.asdict(p), "parameters": p.parameters(options.rank), "gradient": p.id not in lost}
            for p in manifest.points
        ],
        "lost": [dataclasses.asdict(p) for p in manifest.lost],
        "methods": {name: [dataclasses.asdict(p) for p in manifest.points_in(name)] for name in others},
    }
    told = [
        line
        for name, places in others.items()
        for line in ("", f"for {name} adapters", table(places, ("place", "op", "features", "layer", "gradient")))
    ]
    summed = f"{len(rows)} points, {total:,} parameters at rank {options.rank} ({share:.2f} % of the base)"
    emit(
        options,
        result,
        "\n".join([f"{text}\n", summed, *lost_text(manifest, options.explain), *told]),
    )


def run_info(options: argparse.Namespace) -> None:
    """What the bundle is."""
    bundle = Bundle.open(options.bundle).verified()
    manifest = bundle.manifest
    verification = manifest.verification
    lines = [
        f"{manifest.name}: {manifest.task}, {manifest.base_parameters:,} parameters",
        f"base digest    {manifest.base_digest}",
        f"source         {manifest.source.get('kind')}, pooling {manifest.source.get('pooling')}",
        f"precision      {manifest.source.get('precision', 'float32')}",
        *(" " * 15 + line for line in quantized_text(manifest)),
        f"inputs         {', '.join(f'{s.name} {list(s.shape)}' for s in manifest.inputs)}",
        f"outputs        {', '.join(f'{s.name} {list(s.shape)}' for s in manifest.outputs)}",
        f"preprocessing  {preprocessing_text(manifest)}",
        *language_text(manifest),
        f"losses         {', '.join(dict.fromkeys(g.loss for g in manifest.training))}",
        f"methods        {', '.join((LORA_GRAPHS, *manifest.methods))}",
        f"points         {len(manifest.points)} ({listed(manifest.target_modules)})",
        f"size           {size_text(sum(e.size for e in manifest.files.values()))}",
    ]
    if (budget := manifest.budget) is not None:
        steps = f"steps of {budget.batch_size} samples, length {budget.length}"
        lines.append(f"memory budget  {size_text(budget.bytes)} for {steps}")
    if verification is None:
        lines.append("verification   none; run `edgelora check`")
    else:
        worst = max((v["error"] for v in (*verification["points"], *verification.get("graphs", ()))), default=0.0)
        lines.append(
            f"verification   {'passed' if verification['passed'] else 'FAILED'}: parity {verification['parity']:.1e} "
            f"on {verification['parity_samples']} samples, largest gradient error {worst:.1e} over "
            f"{len(verification['points'])} points (ONNX Runtime {verification['onnxruntime']})"
        )
        cosines = {q["id"]: q["cosine"] for q in verification.get("quantized", ())}
        unreached = verification.get("unreached", ())
        if cosines or unreached:
            lines.append(" " * 15 + cosines_text(cosines, unreached))
    emit(options, summary(manifest, bundle.path), "\n".join(lines))


def preprocessing_text(manifest: Manifest) -> str:
    """How what people have becomes the graph's input: of pictures the size, the fit, the channels and the values.

    Of sounds the window, the rate, how a shorter sound is filled up, and the features.
    """
    kind = str(manifest.preprocessing.get("kind"))
    if kind == "audio":
        heard = SoundSettings.of(manifest.preprocessing, manifest.name)
        window = f"windows of {heard.samples / heard.rate:.3g} s"
        rate = f"{'resampled to' if heard.resample else 'of'} {heard.rate:,} Hz"
        fill = "repeated" if heard.fill == "repeat" else "filled up with zeros"
        features = "samples as they are" if heard.features is None else f"features by {heard.features}"
        return f"{kind}, {window} {rate}, shorter sounds {fill}; {features}"
    if kind != "image":
        return kind
    settings = ImageSettings.read(manifest.preprocessing, manifest.name)
    height, width = settings.size
    colours = settings.order if settings.channels == 3 else "grey"
    least, most = settings.range
    return (
        f"{kind}, {height} × {width} (height, width), {settings.fit}, {colours}, values from {least:.3g} to {most:.3g}"
    )


def language_text(manifest: Manifest) -> list[str]:
    """What a language model takes and says, if the bundle is one."""
    if (language := manifest.language) is None:
        return []
    limit = f"{language.max_length:,} tokens at most" if language.max_length else "of any length"
    template = "a chat template" if language.chat_template else "no chat template"
    return [f"language       {language.layers} layers, {language.vocabulary:,} tokens known, {limit}, {template}"]


def lost_text(manifest: Manifest, explain: bool) -> list[str]:
    """What points have no gradient, and why; with `explain` the way from each to the operator in between."""
    if not manifest.lost:
        return []
    by_reason: dict[str, list[LostPoint]] = {}
    for point in manifest.lost:
        by_reason.setdefault(point.blocked_by, []).append(point)
    lines = [f"{len(manifest.lost)} of {len(manifest.points)} points have no gradient, for want of a rule:"]
    for reason, points in by_reason.items():
        lines.append(f"  {reason}")
        if explain:
            lines += [f"    {point.id}: {' → '.join(point.path)}" for point in points]
        else:
            lines.append(f"    stands before {listed([point.id for point in points])}")
    remedy = "train them by forward passes alone with `edgelora train --gradient spsa`"
    shown = "" if explain else "; --explain shows the way"
    return [*lines, f"  {remedy}{shown}"]


def quantized_text(manifest: Manifest) -> list[str]:
    """How the frozen products are computed, and which of them stayed real."""
    counts, real = manifest.source.get("products", {}), manifest.source.get("float32", [])
    if not counts:
        return []
    lines = ["products: " + "; ".join(f"{count} {how}" for how, count in counts.items())]
    return [*lines, *([f"  float32: {listed(real)}"] if real else [])]


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"


def cosines_text(cosines: Mapping[str, float], unreached: Sequence[str]) -> str:
    """How near a quantized base's gradients are to float32's, by point: the mean and the least, which a check decides.

    Points that no gradient reaches have none.
    """
    if not cosines:
        return f"no gradient reaches {listed(unreached)}, so that there are no cosines with float32 gradients"
    mean, least = sum(cosines.values()) / len(cosines), min(cosines, key=lambda point: cosines[point])
    without = f" (none reaches {listed(unreached)})" if unreached else ""
    told = f"{mean:.4f} on the mean of {len(cosines)} points{without}"
    return f"cosines with float32 gradients {told}, least {cosines[least]:.4f} ({least})"


def summary(manifest: Manifest, path: Path) -> dict[str, Any]:
    """The manifest's facts for machines."""
    return {"path": str(path), **dataclasses.asdict(manifest)}
