"""Verbs about the base model: convert, points, info, check, bench, demo."""

from __future__ import annotations

import argparse
import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    memory_size,
    note,
    progress_line,
    settings_of,
    size_text,
    table,
)
from edgelora.cli.sound import add_sound_options, sound_options
from edgelora.config import LoraConfig
from edgelora.errors import ConfigError, DataError
from edgelora.manifest import LORA_GRAPHS, DetectorSettings, LostPoint, Manifest
from edgelora.media.placement import FITS, RESAMPLES
from edgelora.memory_plan import MemoryPlan
from edgelora.vision.detectors import FAMILIES

CHECK_FAILED = 1
_MOST_NAMES = 12


def add_verbs(verbs: Verbs) -> None:
    """Register the verbs."""
    parser = add_verb(
        verbs,
        "convert",
        run_convert,
        "Convert a model into a bundle (desktop).",
        "edgelora convert model.onnx -o home.edgelora --task sequence-classification --pooling mean",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="an .onnx or .tflite file, a Hugging Face directory, a .gguf file (text-generation), module:factory, or "
        "recipe:NAME",
    )
    parser.add_argument("-o", "--output", required=True, metavar="BUNDLE", help="where to write the bundle")
    parser.add_argument(
        "--task",
        default=None,
        help="sequence-classification (default), token-classification, regression, sentence-embedding, "
        "feature-extraction, image-classification, object-detection, semantic-segmentation, keypoint-detection, "
        "audio-classification, speaker-verification, text-generation",
    )
    parser.add_argument(
        "--pooling",
        default=None,
        help="what the head reads: mean (default; of a map over its places), cls, pooler, flatten",
    )
    parser.add_argument(
        "--source-output",
        metavar="NAME",
        help="the source's tensor to use: an output, where several fit, or any tensor inside an .onnx or .tflite file, "
        "as the features before its classifier; '?' lists them",
    )
    parser.add_argument(
        "--target-modules",
        nargs="+",
        metavar="PATTERN",
        help="points that adapters may join: names or suffixes, one regular expression as re:…, or all-linear "
        "(default: the attention projections that PEFT adapts)",
    )
    parser.add_argument("--exclude-modules", nargs="+", metavar="PATTERN", help="points to leave out")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json (default: beside the source)")
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of a text at most (default: the tokenizer's; text-generation: as many as the model takes)",
    )
    parser.add_argument("--exporter", default="dynamo", help="for torch sources: dynamo (default) or torchscript")
    add_image_options(parser)
    add_detector_options(parser)
    add_sound_options(parser)
    parser.add_argument(
        "--fix",
        nargs="+",
        default=[],
        metavar="NAME=NUMBER",
        help="the only size of a dynamic dimension, or the only value of an input (a sample rate), which is then none "
        "of the bundle's",
    )
    parser.add_argument(
        "--train-last",
        nargs="+",
        type=int,
        default=[],
        metavar="K",
        help="also write graphs that train the last K layers alone, after a prefix that runs once a sample",
    )
    parser.add_argument(
        "--quantize",
        choices=["int8", "int4"],
        help="int8: compute products in integers, forward and backward (fastest); int4: weights of 4 bits, one copy "
        "for both (smallest). Products that would turn a point's gradient by more than a cosine of 0.99 take weights "
        "of 8 bits, or stay float32",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="samples, as for train, to quantize for, or text (.txt) for text-generation (default: random inputs)",
    )
    parser.add_argument(
        "--placement",
        choices=("modules", "skip"),
        default="modules",
        help="skip: adapters from every layer's input to the last hidden state, for which the base runs once a sample",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="also write graphs for adapters of other methods than LoRA: dora, ia3, bitfit, layer-norm, bottleneck, "
        "full, prompt, prefix; lora-bias is LoRA with biases (VeRA needs none). For text-generation "
        "LoRA alone generates, and bottleneck, prompt and prefix, which do not merge either, are refused",
    )
    parser.add_argument(
        "--keep-padding",
        action="store_true",
        help="let training graphs compute padding as they would in one batch elsewhere (default: left out where that "
        "changes no result)",
    )
    parser.add_argument(
        "--ram",
        type=memory_size,
        metavar="SIZE",
        help="the memory that training has, as 256MB: says how it would keep to that, refuses to write a bundle that "
        "cannot, and is the budget of `edgelora train` without --ram",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="samples of a step that memory is weighed for (32)"
    )
    parser.add_argument(
        "--length",
        type=int,
        default=128,
        metavar="N",
        help="size of the other dynamic dimensions that it is weighed for (128, or the longest text if that is less)",
    )
    parser.add_argument("--name", help="the base's name in the manifest (default: the source's)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument("--no-check", action="store_true", help="do not verify the bundle after writing it")
    parser.add_argument("--explain", action="store_true", help="show how points that have no gradient are cut off")

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

    parser = add_verb(
        verbs,
        "bench",
        run_bench,
        "Measure this device: forward, step, switch, memory; and find the best settings for it.",
        "edgelora bench home.edgelora --batch-size 8 --length 32",
    )
    add_bundle(parser, store=False)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=32, help="size of the other dynamic dimensions (32)")
    parser.add_argument("--rank", "-r", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--seconds", type=float, default=60, help="how long to try settings of a training step (60; 0: not at all)"
    )

    parser = add_verb(
        verbs,
        "demo",
        run_demo,
        "Two people of one home, one base: fetch, convert, train, switch.",
        "edgelora demo --output demo",
    )
    parser.add_argument("--output", "-o", type=Path, default=Path("demo"), metavar="DIR", help="where to write (demo)")
    parser.add_argument("--epochs", type=int, default=None, help="epochs per person (default: the demo's own)")
    parser.add_argument("--seed", type=int, default=0)


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """How pictures become the model's input: fields of `ImageSettings`."""
    group = parser.add_argument_group("pictures (default: what the source says of itself)")
    group.add_argument("--image-size", nargs=2, type=int, metavar=("H", "W"), help="height and width of the input")
    group.add_argument(
        "--image-fit", choices=FITS, help="how a picture is put into it: stretch (default), crop, letterbox"
    )
    group.add_argument(
        "--image-share", type=float, metavar="S", help="of crop: the share of the shorter side that is kept (1)"
    )
    group.add_argument(
        "--image-scale", type=float, metavar="X", help="what pixels from 0 to 255 are multiplied by (1/255)"
    )
    group.add_argument("--image-mean", nargs="+", type=float, metavar="X", help="then subtracted, of each channel (0)")
    group.add_argument("--image-std", nargs="+", type=float, metavar="X", help="then divided by, of each channel (1)")
    group.add_argument("--image-order", choices=("RGB", "BGR"), help="of the channels (RGB)")
    group.add_argument("--image-resample", choices=RESAMPLES, help="(bilinear)")


def image_options(options: argparse.Namespace) -> dict[str, Any] | None:
    """The fields of `ImageSettings` that were given; None if none was."""
    names = ("size", "fit", "share", "scale", "mean", "std", "order", "resample")
    given = {name: getattr(options, f"image_{name}") for name in names}
    return {name: value for name, value in given.items() if value is not None} or None


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """What a detector's own outputs mean: fields of `DetectorSettings`."""
    group = parser.add_argument_group("object detection by the source's own outputs (default: a new head on its maps)")
    group.add_argument("--detector", choices=FAMILIES, help="the family of detectors that says what the maps mean")
    group.add_argument("--classes", type=Path, metavar="FILE", help="the names of its classes, one a line, in order")
    group.add_argument(
        "--anchors", nargs="+", metavar="W,H,W,H,…", help="for yolo: the anchors of each map, in pixels of the input"
    )


def detector_options(options: argparse.Namespace) -> DetectorSettings | None:
    """The settings that were given; None if there are none.

    Raises:
        ConfigError: some without --detector, or anchors that are no pairs of numbers.
        DataError: the classes' names cannot be read.
    """
    if options.detector is None:
        if options.classes or options.anchors:
            raise ConfigError("--classes and --anchors are of a source's own detector: name its family with --detector")
        return None
    classes: Path | None = options.classes
    levels: list[str] = options.anchors or []
    try:
        lines = [] if classes is None else classes.read_text(encoding="utf-8-sig").splitlines()
        sides = [[float(side) for side in level.split(",")] for level in levels]
    except OSError as error:
        raise DataError(f"{classes}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{classes}: not UTF-8; save the file as UTF-8") from error
    except ValueError as error:
        raise ConfigError("--anchors takes a list W,H,W,H,… for each map") from error
    if any(len(level) % 2 for level in sides):
        raise ConfigError("--anchors takes pairs: a width and a height for each anchor")
    anchors = tuple(tuple(zip(level[::2], level[1::2], strict=True)) for level in sides)
    return DetectorSettings(options.detector, anchors, tuple(line.strip() for line in lines if line.strip()))


def run_convert(options: argparse.Namespace) -> int:
    """SOURCE -> BUNDLE, verified."""
    compiler = desktop("compile")
    sources = desktop("sources")
    spec, defaults = options.source, {}
    if spec.startswith("recipe:"):
        recipes = desktop("recipes")
        recipe = recipes.load_recipe(spec.removeprefix("recipe:"))
        source = recipes.open_recipe(recipe, options.exporter, options.tokenizer, note, options.task)
        defaults = {
            "task": recipe.task,
            "pooling": recipe.pooling,
            "target_modules": recipe.target_modules,
            "name": recipe.name,
        }
    else:
        source = sources.open_source(spec, options.exporter, options.tokenizer, options.task)
    source = sources.fixed(source, numbers(options.fix))
    chosen = compiler.ConvertOptions(
        task=options.task or defaults.get("task", "sequence-classification"),
        pooling=options.pooling or defaults.get("pooling", "mean"),
        output=options.source_output,
        target_modules=patterns(options.target_modules) or defaults.get("target_modules"),
        exclude_modules=patterns(options.exclude_modules),
        name=options.name or defaults.get("name"),
        max_length=options.max_length,
        overwrite=options.overwrite,
        train_last=tuple(options.train_last),
        quantize=options.quantize,
        calibration=options.calibration,
        placement=options.placement,
        unpad=not options.keep_padding,
        methods=tuple(options.methods),
        batch_size=options.batch_size,
        length=options.length,
        ram=options.ram,
        image=image_options(options),
        detector=detector_options(options),
        sound=sound_options(options),
    )
    plans: list[MemoryPlan] = []
    manifest: Manifest = compiler.convert(source, Path(options.output), chosen, progress_line, plans.append)
    verdict = None
    if not options.no_check:
        bundle = Bundle.open(options.output)
        verdict = check(bundle, progress=lambda name: progress_line(f"checking {name}"))
        manifest = store_verdict(bundle, verdict)
    end_progress()
    size = sum(entry.size for entry in manifest.files.values())
    lines = [
        f"{options.output}: {manifest.name}, {manifest.task}, {manifest.base_parameters / 1e6:.1f} M parameters, "
        f"{size_text(size)}",
        f"{len(manifest.points)} insertion points for {', '.join(manifest.target_modules)}",
    ]
    lines += quantized_text(manifest)
    lines += lost_text(manifest, options.explain)
    lines += [forecast_text(manifest, plan) for plan in plans]
    if verdict is not None:
        lines.append(verdict_text(verdict))
    plan = {"plan": plans[0].to_dict()} if plans else {}
    emit(options, summary(manifest, Path(options.output)) | plan, "\n".join(lines))
    return 0 if verdict is None or verdict.passed else CHECK_FAILED


def forecast_text(manifest: Manifest, plan: MemoryPlan) -> str:
    """How training would keep to the bundle's budget."""
    steps = "" if (b := manifest.budget) is None else f"steps of {b.batch_size} samples, length {b.length}; "
    return f"training: {steps}{plan.describe()}"


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
            more = f" and {len(points) - _MOST_NAMES} more" if len(points) > _MOST_NAMES else ""
            lines.append(f"    stands before {', '.join(point.id for point in points[:_MOST_NAMES])}{more}")
    remedy = "train them by forward passes alone with `edgelora train --gradient spsa`"
    shown = "" if explain else "; --explain shows the way"
    return [*lines, f"  {remedy}{shown}"]


def quantized_text(manifest: Manifest) -> list[str]:
    """How the frozen products are computed, and which of them stayed real."""
    counts, real = manifest.source.get("products", {}), manifest.source.get("float32", [])
    if not counts:
        return []
    lines = ["products: " + "; ".join(f"{count} {how}" for how, count in counts.items())]
    more = f" and {len(real) - _MOST_NAMES} more" if len(real) > _MOST_NAMES else ""
    return [*lines, *([f"  float32: {', '.join(real[:_MOST_NAMES])}{more}"] if real else [])]


def patterns(given: list[str] | None) -> str | tuple[str, ...] | None:
    """Patterns as PEFT takes them: names, or one string: a regular expression, or all-linear. "none" is no point."""
    if given is None:
        return None
    if len(given) == 1 and given[0].startswith("re:"):
        return given[0].removeprefix("re:")
    if given == ["none"]:
        return ()
    return "all-linear" if given == ["all-linear"] else tuple(given)


def numbers(given: list[str]) -> dict[str, float]:
    """NAME=NUMBER, as `--fix` takes them.

    Raises:
        DataError: one is of another form.
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise DataError(f"--fix {text}: it takes NAME=NUMBER, as in --fix sequence=512")
    return found


def summary(manifest: Manifest, path: Path) -> dict[str, Any]:
    """The manifest's facts for machines."""
    return {"path": str(path), **dataclasses.asdict(manifest)}


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
        f"preprocessing  {manifest.preprocessing.get('kind')}",
        *language_text(manifest),
        f"losses         {', '.join(dict.fromkeys(g.loss for g in manifest.training))}",
        f"methods        {', '.join((LORA_GRAPHS, *manifest.methods))}",
        f"points         {len(manifest.points)} ({', '.join(manifest.target_modules)})",
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
        cosines = [q["cosine"] for q in verification.get("quantized", ())]
        if cosines:
            lines.append(f"               least cosine with float32 gradients {min(cosines):.4f}")
    emit(options, summary(manifest, bundle.path), "\n".join(lines))


def language_text(manifest: Manifest) -> list[str]:
    """What a language model takes and says, if the bundle is one."""
    if (language := manifest.language) is None:
        return []
    limit = f"{language.max_length:,} tokens at most" if language.max_length else "of any length"
    template = "a chat template" if language.chat_template else "no chat template"
    return [f"language       {language.layers} layers, {language.vocabulary:,} tokens known, {limit}, {template}"]


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
        source = desktop("sources").open_source(options.source, options.exporter, task=bundle.manifest.task)
        wanted = desktop("compile").source_outputs(source, bundle.manifest, feeds)
        extra = [({s.name: feeds[s.name] for s in specs}, wanted)]
    verdict = check(bundle, extra, lambda name: progress_line(f"checking {name}"))
    end_progress()
    store_verdict(bundle, verdict)
    text = points_text(verdict)
    graphs = [(g.file, g.where, g.error, "ok" if g.passed else "WRONG") for g in verdict.graphs]
    text = f"{text}\n\n{table(graphs, ('graph', 'largest at', 'relative gap', ''))}"
    lines = [*quantized_text(bundle.manifest), verdict_text(verdict)]
    emit(options, verdict.to_dict(), "\n".join([text, "", *lines]))
    return 0 if verdict.passed else CHECK_FAILED


def points_text(verdict: Verdict) -> str:
    """The table of the points; where the float32 gradients decide, with their cosine and size before the verdict."""
    nearness = {q.id: (q.cosine, q.size) for q in verdict.quantized}
    rows: list[tuple[object, ...]] = []
    head = ["point", "gradient", "differences", "relative gap", ""]
    for p in verdict.points:
        extra = nearness.get(p.id, ("", "")) if nearness else ()
        rows.append((p.id, p.analytic, p.numeric, p.error, *extra, "ok" if p.passed else "WRONG"))
    if nearness:
        head[-1:] = ["float32 cosine", "size", ""]
    return table(rows, tuple(head))


def verdict_text(verdict: Verdict) -> str:
    """The verdict in a line."""
    said = f"check {'passed' if verdict.passed else 'FAILED'}: parity {verdict.parity:.1e} on {verdict.parity_samples} "
    worst = max((v.error for v in (*verdict.points, *verdict.graphs)), default=0.0)
    if not verdict.quantized:
        return f"{said}samples, largest gradient error {worst:.1e} over {len(verdict.points)} points"
    least = min(verdict.quantized, key=lambda q: q.cosine)
    return (
        f"{said}samples, least cosine with float32 gradients {least.cosine:.4f} over {len(verdict.quantized)} points "
        f"({least.id}); differences, coarse for rounded outputs, within {worst:.1e}"
    )


def run_bench(options: argparse.Namespace) -> None:
    """This device's figures, and which settings would be best here."""
    from edgelora.bench import bench
    from edgelora.tuning import advice, tune

    settings = settings_of(options)
    sizes = options.batch_size, options.length, options.rank
    progress_line("measuring inference and training")
    figures = bench(options.bundle, settings, *sizes, options.steps)
    tried = tune(Path(options.bundle), settings, *sizes, options.seconds, progress_line)
    end_progress()
    figures |= {"cold_start_ms": tried[0].cold_start_ms, "peak_memory_mb": tried[0].peak_memory_mb}
    text = bench_text(figures)
    if options.seconds > 0:
        figures["settings"] = [
            {"options": o.trial.options, "cold_start_ms": o.cold_start_ms, "step_ms": o.step_ms,
             "peak_memory_mb": o.peak_memory_mb} for o in tried
        ]  # fmt: skip
        figures["advice"] = advice(tried)
        head = ("settings", "step, ms", "peak memory, MB", "cold start, ms")
        trials = table([(o.trial.options, o.step_ms, o.peak_memory_mb, o.cold_start_ms) for o in tried], head)
        text = "\n".join([text, "", trials, "", *figures["advice"]])
    emit(options, figures, text)


def bench_text(figures: Mapping[str, Any]) -> str:
    """The figures of `bench` with their units, for a person."""
    rows: list[tuple[str, Any, str]] = [
        ("check and open the bundle", figures["load_ms"], "ms"),
        ("a start of training, to the end of the first step", figures["cold_start_ms"], "ms"),
        ("switch to another adapter", figures["switch_ms"], "ms"),
        ("predict one row, no adapter", figures["forward_off_1_ms"], "ms"),
        ("predict one row, with an adapter", figures["forward_on_1_ms"], "ms"),
        ("predict the batch, no adapter", figures["forward_off_ms"], "ms"),
        ("predict the batch, with an adapter", figures["forward_on_ms"], "ms"),
        ("rows a second, one adapter", figures["rows_per_second"], ""),
        ("rows a second, an adapter in each", figures["mixed_rows_per_second"], ""),
        *_language_rows(figures),
        *((f"a step of training, {file}", taken, "ms") for file, taken in figures["step_ms"].items()),
        ("samples a second, training", figures["samples_per_second"], ""),
        ("tokens a second, training", figures["tokens_per_second"], ""),
        ("multiplications of these cores at most", figures["peak_gflops"], "GFLOP/s"),
        ("the share of it that training reaches", figures["gemm_share"], ""),
        ("peak memory of training", figures["peak_memory_mb"], "MB"),
    ]
    head = (
        f"batch {figures['batch_size']}, length {figures['length']}, rank {figures['rank']}, "
        f"{figures['points']} points, {figures['cores']} cores"
    )
    return f"{head}\n\n" + table([row for row in rows if row[1] is not None], ("", "median", "unit"))


def _language_rows(figures: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """The figures of a language model."""
    kinds = {"read": "reading the batch", "write": "writing to the batch", "write_1": "writing to one row"}
    return [
        (f"tokens a second, {what}, {told}", figures[name], "")
        for kind, what in kinds.items()
        for side, told in (("off", "no adapter"), ("on", "with an adapter"))
        if (name := f"{kind.removesuffix('_1')}_tokens_per_second_{side}{'_1' * kind.endswith('_1')}") in figures
    ]


def run_demo(options: argparse.Namespace) -> None:
    """The main job, end to end."""
    demo = desktop("demo")
    report = demo.run_demo(options.output, options.epochs, options.seed, note)
    emit(options, report, demo.report_text(report))
