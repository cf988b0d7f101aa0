"""Commands on bundles that are none, damaged, or of a later format: each is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.device.command import Command
from tests.device.spoil import edit_manifest, flip, list_file, spoil

TEXT = {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 8, "pad_id": 0}


@pytest.mark.parametrize(
    "verb", ["points", "info", "check", "train", "eval", "predict", "adapters", "export", "import"]
)
@pytest.mark.parametrize("kind", ["absent", "a file", "an empty folder"])
def test_a_missing_bundle_is_named(run: Command, tmp_path: Path, data: Path, verb: str, kind: str):
    path = tmp_path / "missing.edgelora"
    if kind == "a file":
        path.write_text("{}")
    elif kind == "an empty folder":
        path.mkdir()
    rest: dict[str, tuple[Any, ...]] = {
        "train": ("--adapter", "a", "--data", data),
        "eval": ("--adapter", "a", "--data", data),
        "predict": ("--adapter", "a", "text"),
        "adapters": ("list",),
        "export": ("--adapter", "a", "-o", tmp_path / "out"),
        "import": (tmp_path, "--adapter", "a"),
    }
    assert "missing.edgelora" in run.refused(verb, path, *rest.get(verb, ()))


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (spoil("weights.bin", flip), "weights.bin"),
        (spoil("weights.bin", lambda content: content[:-1]), "weights.bin"),
        (spoil("forward.onnx", flip), "forward.onnx"),
        (spoil("tokenizer.json", flip), "tokenizer.json"),
        (lambda bundle: (bundle / "forward.onnx").unlink(), "forward.onnx"),
        (spoil("bundle.json", lambda content: content[: len(content) // 2]), "JSON"),
        (spoil("bundle.json", lambda content: b""), "bundle.json"),
        (spoil("bundle.json", lambda content: b"\xff\xfe" + content), "bundle.json"),
        (spoil("bundle.json", lambda content: b"[" * 100_000), "bundle.json"),
        (spoil("bundle.json", lambda content: b"[]"), "bundle.json"),
        (edit_manifest(format_version="2.0"), "2.0"),
        (edit_manifest(format_version=None), "format"),
        (edit_manifest(format="something-else"), "bundle"),
        (list_file("../weights.bin"), "plain file name"),
        (list_file("/etc/passwd"), "plain file name"),
        (list_file("absent.txt"), "absent.txt"),
        (edit_manifest(points=[{"id": "x"}]), r"points\[0\] has no op"),
        (edit_manifest(points=None), "points must be"),
        (edit_manifest(files=[]), "files must be"),
        (edit_manifest(files={}), "files does not list forward.onnx"),
        (edit_manifest(training="x"), "training must be"),
        (edit_manifest(head={"name": 1}), "head has no features"),
        (edit_manifest(head={"name": 1, "features": 32, "per": "sequence"}), "head.name must be str"),
        (edit_manifest(base_parameters=True), "base_parameters must be int"),
        (edit_manifest(preprocessing=None), "preprocessing must be"),
        (edit_manifest(preprocessing={"kind": "text"}), "preprocessing.tokenizer"),
        (edit_manifest(preprocessing=TEXT | {"tokenizer": "../x"}), r"\.\./x"),
        (edit_manifest(preprocessing=TEXT | {"max_length": "x"}), "max_length"),
        (edit_manifest(preprocessing=TEXT | {"max_length": 0}), "max_length"),
        (edit_manifest(preprocessing=TEXT | {"pad_id": -1}), "pad_id"),
        (edit_manifest(forward="absent.onnx"), "absent.onnx"),
        (edit_manifest(forward="../forward.onnx"), r"\.\./forward.onnx"),
        (edit_manifest(outputs=[]), "outputs"),
    ],
)
def test_a_damaged_bundle_is_named(run: Command, damaged: Path, home, spoiled, said: str):
    spoiled(damaged)
    message = run.refused("predict", damaged, *home[1:], "make the room warm")
    assert re.search(said, message), message
    assert "copy.edgelora" in message


def test_a_later_minor_version_is_read(run: Command, damaged: Path):
    edit_manifest(format_version="1.9", something_new={"x": 1})(damaged)
    assert run.json("info", damaged)["name"] == "tiny"
