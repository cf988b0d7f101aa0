"""Verbs that use an adapter: eval, predict."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, cast

import numpy as np

from edgelora.cli.common import Verbs, add_bundle, add_verb, emit, open_model, table
from edgelora.data import read_samples, read_texts
from edgelora.errors import ConfigError, DataError
from edgelora.runtime import Model
from edgelora.tasks import objective_for
from edgelora.trainer import evaluate
from edgelora.training_config import TrainingConfig


def add_verbs(verbs: Verbs) -> None:
    """Register the verbs."""
    parser = add_verb(
        verbs,
        "eval",
        run_eval,
        "Evaluate an adapter on labelled data.",
        "edgelora eval home.edgelora --adapter user-1 --data test.jsonl",
    )
    add_bundle(parser)
    parser.add_argument("--adapter", required=True, metavar="NAME")
    parser.add_argument("--version", type=int, metavar="N", help="an older version (default: the current one)")
    parser.add_argument("--data", required=True, metavar="FILE", help="CSV or JSONL; - reads standard input")
    parser.add_argument("--format", choices=("csv", "jsonl"))
    parser.add_argument("--batch-size", type=int, default=32)

    parser = add_verb(
        verbs,
        "predict",
        run_predict,
        "Predict with a person's adapter, or with the base where the task needs no head.",
        'edgelora predict home.edgelora --adapter user-1 "make it cosy"',
    )
    add_bundle(parser)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; none: one per line of standard input")
    parser.add_argument("--adapter", metavar="NAME", help="whose adapter (default: the base alone)")
    parser.add_argument("--data", metavar="FILE", help="texts from CSV or JSONL (field text)")
    parser.add_argument("--format", choices=("csv", "jsonl"))


def run_eval(options: argparse.Namespace) -> None:
    """Metrics of an adapter."""
    model = open_model(options)
    adapter = model.store.load(options.adapter, options.version)
    adapter.validate(model.bundle.manifest)
    samples = read_samples(options.data, model.bundle.manifest.task, options.format)
    objective = objective_for(model, samples, adapter.labels, TrainingConfig())
    metrics = evaluate(model.bundle, adapter, objective, options.batch_size)
    result = {"adapter": options.adapter, "samples": len(samples), **metrics}
    emit(options, result, table([(k, v) for k, v in result.items() if k != "adapter"], (options.adapter, "")))


def run_predict(options: argparse.Namespace) -> None:
    """One line per text."""
    model = open_model(options)
    texts = options.texts
    if options.data:
        texts = read_texts(options.data, options.format)
    elif not texts:
        texts = stdin_lines()
    if not texts:
        raise ConfigError("there is nothing to predict: give texts, --data FILE, or lines on standard input")
    results = predictions(model, texts, options.adapter)
    if options.json:
        emit(options, results, "")
        return
    rows = [[_short(r["text"]), *(_show(v) for k, v in r.items() if k != "text")] for r in results]
    emit(options, results, table(rows, list(results[0])))


def stdin_lines() -> list[str]:
    """The lines of standard input that are not blank.

    Raises:
        DataError: they are not UTF-8.
    """
    try:
        return [line.rstrip("\n") for line in sys.stdin if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError("standard input: not UTF-8") from error


def predictions(model: Model, texts: list[str], adapter: str | None) -> list[dict[str, Any]]:
    """JSON-able predictions."""
    predicted = model.predict(texts, adapter=adapter)
    if model.bundle.manifest.task == "sequence-classification":
        scores = model.predict_proba(texts, adapter=adapter).max(-1)
        return [
            {"text": t, "label": p, "score": round(float(s), 4)}
            for t, p, s in zip(texts, predicted, scores, strict=True)
        ]
    if model.bundle.manifest.task == "token-classification":
        return [{"text": t, "tokens": t.split(), "labels": p} for t, p in zip(texts, predicted, strict=True)]
    if isinstance(predicted, dict):
        return [{"text": t, **{k: v[i].tolist() for k, v in predicted.items()}} for i, t in enumerate(texts)]
    return [
        {"text": t, "prediction": p.tolist() if isinstance(p, np.ndarray) else p}
        for t, p in zip(texts, predicted, strict=True)
    ]


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _show(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    items = cast("list[Any]", value)
    if items and isinstance(items[0], float | list):
        return _short(json.dumps(items), 40)
    return " ".join(map(str, items))
