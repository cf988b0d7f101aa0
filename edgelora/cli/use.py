"""Verbs that use an adapter: eval, predict."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from edgelora.adapter import new_adapter
from edgelora.cli.by_line import choose_adapters
from edgelora.cli.common import Verbs, add_bundle, add_format, add_lengths, add_verb, desktop, emit, open_model, table
from edgelora.cli.pictures import drawn_files, save_drawn
from edgelora.cli.sound import recognised
from edgelora.config import LoraConfig
from edgelora.errors import ConfigError, DataError
from edgelora.evaluation import evaluate_each
from edgelora.runtime import Model
from edgelora.samples import Named, Sample
from edgelora.tasks import Task, objective_for
from edgelora.tasks.object_detection import ObjectDetection
from edgelora.trainer import evaluate
from edgelora.training_config import TrainingConfig


def add_verbs(verbs: Verbs) -> None:
    """Register the verbs."""
    parser = add_verb(
        verbs,
        "eval",
        run_eval,
        "Evaluate an adapter on labelled data, or many adapters at once.",
        "edgelora eval home.edgelora --adapter user-1 --data test.jsonl\n"
        "  edgelora eval home.edgelora --data people.jsonl\n"
        '    with lines such as {"text": "make it cosy", "label": "warm", "adapter": "user-1"}',
    )
    add_bundle(parser)
    parser.add_argument(
        "--adapter",
        metavar="NAME",
        help="of all records that name none of their own (default: the base alone, where it needs none)",
    )
    parser.add_argument("--version", type=int, metavar="N", help="an older version (default: the current one)")
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="as for train; - reads standard input. A field adapter says whose a record is",
    )
    add_format(parser, of_samples=True)
    parser.add_argument("--batch-size", type=int, default=32)
    add_lengths(parser)

    parser = add_verb(
        verbs,
        "predict",
        run_predict,
        "Predict with a person's adapter, each line with its own, or with the base where the task needs no head.",
        'edgelora predict home.edgelora --adapter user-1 "make it cosy" "the usual"\n'
        '  edgelora predict home.edgelora --adapter user-1 --adapter user-2 "the usual" "the usual"\n'
        "  edgelora predict home.edgelora --adapters-file names.txt < texts.txt\n"
        "  edgelora predict home.edgelora --data people.jsonl\n"
        '    with lines such as {"text": "make it cosy", "adapter": "user-1"}',
    )
    add_bundle(parser)
    parser.add_argument(
        "given",
        nargs="*",
        metavar="INPUT",
        help="texts, or files and folders of pictures or sounds; none: one per line of standard input",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME",
        help="whose adapter (default: the base alone); given several times, one for each input, in order",
    )
    parser.add_argument("--score", type=float, metavar="S", help="objects: how sure at least, from 0 to 1 (0.25)")
    parser.add_argument(
        "--overlap", type=float, metavar="S", help="objects: how far two of one label may overlap, from 0 to 1 (0.45)"
    )
    parser.add_argument(
        "--adapters-file", metavar="FILE", help="a name per line, one for each input; a blank line is the base alone"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="inputs from CSV or JSONL (field text, image or audio; a field adapter says whose one is)",
    )
    add_format(parser, of_samples=False)
    parser.add_argument(
        "--engine",
        choices=("onnx", "tflite"),
        default="onnx",
        help="what runs the model: ONNX Runtime (default), or TFLite's interpreter on the file that the bundle was "
        "made from, with the adapter in its weights",
    )
    parser.add_argument("--source", type=Path, metavar="FILE.tflite", help="for --engine tflite: that file")
    parser.add_argument(
        "--draw", type=Path, metavar="FOLDER", help="of pictures: also leave each with what was predicted drawn on it"
    )
    parser.add_argument(
        "--voices",
        metavar="PATH",
        help="of speaker-verification: enrol these, FOLDER/NAME/file.wav or one wav file, and tell whose a sound is",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="COSINE",
        help="from which on a sound is a voice's (default: that of the equal error rate in the adapter's validation)",
    )


def run_eval(options: argparse.Namespace) -> None:
    """Metrics of an adapter, of each that a record names, or of the base where it predicts without one."""
    model = open_model(options)
    named = model.task.read_named(options.data, options.format)
    if any(line.adapter is not None for line in named):
        _eval_each(options, model, named)
        return
    manifest = model.bundle.manifest
    if options.adapter is None and (manifest.head is not None or options.version is not None):
        raise ConfigError("whose adapter? Give --adapter NAME, or every record a field adapter")
    if options.adapter is None:
        adapter = new_adapter(manifest, LoraConfig())  # a new one changes nothing
    else:
        adapter = model.store.load(options.adapter, options.version)
        adapter.validate(manifest)
    samples = [line.content for line in named]
    objective = objective_for(model, samples, adapter.labels, _reading(options))
    metrics = evaluate(model.bundle, adapter, objective, options.batch_size)
    result = {"adapter": options.adapter, "samples": len(samples), **metrics}
    shown = [(key, value) for key, value in result.items() if key != "adapter"]
    emit(options, result, table(shown, (options.adapter or "the base alone", "")))


def _eval_each(options: argparse.Namespace, model: Model, named: list[Named[Sample]]) -> None:
    """Metrics of every adapter on the records that name it, and over all records."""
    if options.version is not None:
        raise ConfigError("--version is of one adapter, and the records name their own: leave one of them out")
    chosen = choose_adapters(named, [] if options.adapter is None else [options.adapter], None, model.store, "records")
    adapters: list[str] = []
    for line, adapter in zip(named, chosen.adapters, strict=True):
        if adapter is None:
            raise DataError(f"{line.where}: names no adapter; add the field adapter, or give --adapter for such lines")
        adapters.append(adapter)
    mean, each = evaluate_each(model, [line.content for line in named], adapters, options.batch_size, _reading(options))
    parts = {name: {"samples": adapters.count(name), **metrics} for name, metrics in each.items()}
    result = {"samples": len(named), **mean}
    rows = [(name, *(part[key] for key in result)) for name, part in parts.items()] + [("all", *result.values())]
    emit(options, {**result, "adapters": parts}, table(rows, ("adapter", *result)))


def _reading(options: argparse.Namespace) -> TrainingConfig:
    """The settings that say how samples are read."""
    return TrainingConfig(max_length=options.max_length, truncate=options.truncate, beta=options.beta)


def run_predict(options: argparse.Namespace) -> None:
    """One line per input."""
    if (options.engine == "tflite") != (options.source is not None):
        raise ConfigError("--engine tflite and --source go together: the adapter goes into that file's weights")
    model = open_model(options)
    if options.source is not None:
        model = desktop("interop.tflite_engine").InterpreterModel(model, options.source)
    task = with_thresholds(model.task, options)
    if options.data:
        lines = task.read_inputs(options.data, options.format)
    else:
        words = [Named(word, None, f"input {number}") for number, word in enumerate(options.given, 1)]
        lines = task.given_inputs(words or stdin_lines())
    if not lines:
        what = task.inputs_name
        raise ConfigError(f"there is nothing to predict: give {what}, --data FILE, or lines on standard input")
    chosen = choose_adapters(lines, options.adapter, options.adapters_file, model.store, task.inputs_name)
    inputs = [line.content for line in lines]
    drawn = None if options.draw is None else drawn_files(model, inputs, options.draw)
    if options.voices is not None:
        if chosen.by_line:
            raise ConfigError("--voices are enrolled with one adapter: name one for all sounds")
        results = recognised(model, inputs, options.voices, chosen.adapters[0], options.threshold)
    elif chosen.by_line:
        results = task.results(model, inputs, None, chosen.adapters)
        results = [{"adapter": name, **r} for name, r in zip(chosen.adapters, results, strict=True)]
    else:
        results = task.results(model, inputs, chosen.adapters[0], None)
    if drawn is not None:
        save_drawn(model, inputs, results, chosen.adapters, drawn)
    if options.json:
        emit(options, results, "")
        return
    told = [task.shown(result) for result in results]
    rows = [[_short(str(v)) if k == "text" else _show(v) for k, v in r.items()] for r in told]
    emit(options, results, table(rows, list(told[0])))


def with_thresholds(task: Task, options: argparse.Namespace) -> Task:
    """The task with the thresholds that were given.

    Raises:
        ConfigError: the task has none, one is out of range, or that of voices comes without voices.
    """
    if (cosine := options.threshold) is not None and options.voices is None:
        raise ConfigError("--threshold is for --voices: give those to enrol")
    if cosine is not None and not -1 <= cosine <= 1:
        raise ConfigError(f"--threshold is a cosine, from -1 to 1, not {cosine:g}")
    given = {name: getattr(options, name) for name in ("score", "overlap") if getattr(options, name) is not None}
    if not given:
        return task
    if not isinstance(task, ObjectDetection):
        raise ConfigError(f"--{next(iter(given))} is for object detection, and this bundle is for {task.name}")
    return replace(task, **given)


def stdin_lines() -> list[Named[str]]:
    """The lines of standard input that are not blank.

    Raises:
        DataError: they are not UTF-8.
    """
    try:
        numbered = enumerate(sys.stdin, 1)
        return [Named(x.rstrip("\n"), None, f"standard input, line {n}") for n, x in numbered if x.strip()]
    except UnicodeDecodeError as error:
        raise DataError("standard input: not UTF-8") from error


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _show(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    items = cast("list[Any]", value)
    if items and isinstance(items[0], dict):
        return "; ".join(f"{o['label']} {o['score']:.2f} at {', '.join(f'{x:.0f}' for x in o['box'])}" for o in items)
    if items and isinstance(items[0], float | list):
        return _short(json.dumps(items), 40)
    return " ".join(map(str, items))
