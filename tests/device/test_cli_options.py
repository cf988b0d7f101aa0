"""Data and values of options that are refused, before anything is trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.device.command import Command

BAD_OPTIONS = [
    ("--rank", "0"),
    ("--rank", "-3"),
    ("--rank", "1000000000"),
    ("--rank", "many"),
    ("--lora-alpha", "0"),
    ("--lora-alpha", "nan"),
    ("--lora-dropout", "1"),
    ("--lora-dropout", "-0.1"),
    ("--target-modules", "quary"),
    ("--target-modules", "re:("),
    ("--target-modules", "re:nothing"),
    ("--exclude-modules", "nothing"),
    ("--exclude-modules", "query", "value", "dense"),
    ("--layers-to-transform", "7"),
    ("--rank-pattern", "query"),
    ("--rank-pattern", "query=two"),
    ("--rank-pattern", "query=0"),
    ("--rank-pattern", "query=2.5"),
    ("--rank-pattern", "query=inf"),
    ("--rank-pattern", "query=nan"),
    ("--alpha-pattern", "query=-1"),
    ("--alpha-pattern", "query=nan"),
    ("--epochs", "0"),
    ("--epochs", "1.5"),
    ("--max-steps", "0"),
    ("--batch-size", "0"),
    ("--batch-size", "-1"),
    ("--micro-batch-size", "0"),
    ("--learning-rate", "0"),
    ("--learning-rate", "nan"),
    ("--learning-rate", "inf"),
    ("--optim", "lion"),
    ("--weight-decay", "-1"),
    ("--weight-decay", "inf"),
    ("--momentum", "1"),
    ("--schedule", "square"),
    ("--warmup-steps", "-1"),
    ("--warmup-ratio", "2"),
    ("--max-grad-norm", "-1"),
    ("--max-grad-norm", "nan"),
    ("--class-weight", "heavy"),
    ("--loss", "hinge"),
    ("--loss", "cotangent"),
    ("--temperature", "0"),
    ("--margin", "nan"),
    ("--patience", "0", "--validation-split", "0.5"),
    ("--patience", "2"),
    ("--seed", "-1"),
    ("--seed", "x"),
    ("--save-steps", "0"),
    ("--validation-split", "1.5"),
    ("--validation-split", "-0.5"),
    ("--validation-split", "nan"),
    ("--validation", "absent.jsonl"),
    ("--keep", "worst"),
    ("--threads", "-1"),
    ("--threads", "0"),
    ("--unknown-option",),
]


@pytest.mark.parametrize("option", BAD_OPTIONS, ids=" ".join)
def test_a_bad_option_value_is_refused_before_anything_is_trained(
    run: Command, bundle: Path, store: Path, data: Path, option: tuple[str, ...]
):
    message = run.refused("train", bundle, "--store", store, "--adapter", "home", "--data", data, *option)
    words = {w for part in option for w in part.replace("=", " ").split()} | {option[0].removeprefix("--")}
    name = option[0].removeprefix("--").replace("-", "_")
    assert name in message.replace("-", "_") or any(w in message for w in words), message
    assert run.json("adapters", bundle, "list", "--store", store) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("points", "--rank", "0"),
        ("points", "--rank", "-1"),
        ("bench", "--batch-size", "0"),
        ("bench", "--length", "0"),
        ("bench", "--rank", "0"),
        ("bench", "--steps", "0"),
        ("check", "--inputs", "absent.npz"),
        ("check", "--source", "absent.onnx"),
        ("check", "--inputs", "absent.npz", "--source", "absent.onnx"),
    ],
    ids=" ".join,
)
def test_bad_options_of_the_bundle_verbs(run: Command, bundle: Path, arguments: tuple[str, ...]):
    run.refused(arguments[0], bundle, *arguments[1:])


@pytest.mark.parametrize("size", ["0", "-1"])
def test_a_bad_batch_size_of_eval(run: Command, home, data: Path, size: str):
    assert "batch_size" in run.refused("eval", *home, "--data", data, f"--batch-size={size}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no samples"),
        ("\n\n", "no samples"),
        ('{"text": "a", "label": "x"}\n{"text": "b"\n', "line 2"),
        ('{"text": "a", "label": "x"}\n[1]\n', "line 2"),
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', "line 2.*label"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n', "line 2.*label"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": [1]}\n', "line 2.*label"),
        ('{"text": "a", "label": "x"}\n{"text": 5, "label": "y"}\n', "line 2.*text"),
        ('{"text": "a", "label": "x"}\n{"text": "  ", "label": "y"}\n', "line 2.*blank"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n', "needs 2 or more"),
    ],
)
def test_bad_data_is_named_and_nothing_is_trained(
    run: Command, bundle: Path, store: Path, tmp_path: Path, content: str, said: str
):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    message = run.refused("train", bundle, "--store", store, "--adapter", "home", "--data", path)
    assert re.search(said, message), message
    assert run.json("adapters", bundle, "list", "--store", store) == []


def test_data_that_cannot_be_read(run: Command, bundle: Path, store: Path, tmp_path: Path):
    base = ("train", bundle, "--store", store, "--adapter", "home", "--data")
    assert "absent.jsonl" in run.refused(*base, tmp_path / "absent.jsonl")
    assert "cannot be read" in run.refused(*base, tmp_path, "--format", "csv")
    (tmp_path / "data.xyz").write_text("text,label\n")
    assert "--format" in run.refused(*base, tmp_path / "data.xyz")


def test_labels_that_the_adapter_does_not_know(run: Command, home, tmp_path: Path):
    path = tmp_path / "test.csv"
    path.write_text("text,label\nthe lamp,warm\nthe hall,frozen\n")
    message = run.refused("eval", *home, "--data", path)
    assert "frozen" in message and "bright, quiet, warm" in message
