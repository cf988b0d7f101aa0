"""The verb that makes a bundle: convert."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgelora.bundle import Bundle
from edgelora.check import check, store_verdict
from edgelora.cli.common import (
    Verbs,
    add_verb,
    desktop,
    emit,
    end_progress,
    memory_size,
    note,
    progress_line,
    size_text,
    stage_line,
)
from edgelora.cli.describe import listed, lost_text, quantized_text, summary
from edgelora.cli.picture_options import add_detector_options, add_image_options, detector_options, image_options
from edgelora.cli.sound import add_sound_options, sound_options
from edgelora.cli.values import numbers, patterns
from edgelora.cli.verify import CHECK_FAILED, unsure_text, verdict_text
from edgelora.manifest import Manifest
from edgelora.memory_plan import MemoryPlan
from edgelora.tasks import task_named


def add_verbs(verbs: Verbs) -> None:
    """Register the verb."""
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
        "--no-tokenizer-check",
        action="store_true",
        help="text-generation: take a tokenizer by which the model reads no plain sentences, as where it is made for a "
        "rare language, or for none",
    )
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
        "for both (smallest). Products that would turn a point's gradient by more than a cosine of 0.99 (of a language "
        "model, the points' on the mean) take finer codes, or stay float32",
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
        "full, prompt, prefix; lora-bias is LoRA with biases (VeRA needs none)",
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


def run_convert(options: argparse.Namespace) -> int:
    """SOURCE -> BUNDLE, verified."""
    compiler = desktop("compile")
    sources = desktop("sources")
    tell = progress_line if options.json else stage_line
    spec, defaults, by_text = options.source, {}, not options.no_tokenizer_check
    if options.task is not None:
        task_named(options.task)
    compiler.check_place(Path(options.output), options.source_output, options.overwrite)  # before it is read
    tell(f"reading {spec}")
    if spec.startswith("recipe:"):
        recipes = desktop("recipes")
        recipe = recipes.load_recipe(spec.removeprefix("recipe:"))
        source = recipes.open_recipe(recipe, options.exporter, options.tokenizer, note, options.task, by_text)
        defaults = {
            "task": recipe.task,
            "pooling": recipe.pooling,
            "target_modules": recipe.target_modules,
            "name": recipe.name,
        }
    else:
        source = sources.open_source(spec, options.exporter, options.tokenizer, options.task, by_text)
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
    manifest: Manifest = compiler.convert(source, Path(options.output), chosen, tell, plans.append)
    verdict = None
    if not options.no_check:
        tell("checking")
        bundle = Bundle.open(options.output)
        verdict = check(bundle, progress=lambda name: progress_line(f"checking {name}"))
        manifest = store_verdict(bundle, verdict)
    end_progress()
    size = sum(entry.size for entry in manifest.files.values())
    lines = [
        f"{options.output}: {manifest.name}, {manifest.task}, {manifest.base_parameters / 1e6:.1f} M parameters, "
        f"{size_text(size)}",
        f"{len(manifest.points)} insertion points for {listed(manifest.target_modules)}",
    ]
    lines += quantized_text(manifest)
    lines += lost_text(manifest, options.explain)
    lines += [forecast_text(manifest, plan) for plan in plans]
    if verdict is not None:
        lines += [*unsure_text(verdict), verdict_text(verdict)]
    plan = {"plan": plans[0].to_dict()} if plans else {}
    emit(options, summary(manifest, Path(options.output)) | plan, "\n".join(lines))
    return 0 if verdict is None or verdict.passed else CHECK_FAILED


def forecast_text(manifest: Manifest, plan: MemoryPlan) -> str:
    """How training would keep to the bundle's budget."""
    steps = "" if (b := manifest.budget) is None else f"steps of {b.batch_size} samples, length {b.length}; "
    return f"training: {steps}{plan.describe()}"
