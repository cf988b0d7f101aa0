"""Manifests that tell of another language model than the bundle's, or of none that there could be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.errors import BundleError
from edgelora.manifest import Manifest

NONSENSE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another task": lambda b: b.update(task="token-classification"),
    "a head": lambda b: b.update(head={"name": "classifier", "features": 32, "per": "token"}),
    "other ids": lambda b: b["inputs"][0].update(name="ids"),
    "no mask": lambda b: b["inputs"].pop(1),
    "real positions": lambda b: b["inputs"][2].update(dtype="float32"),
    "positions without length": lambda b: b["inputs"][2].update(shape=["batch"]),
    "logits of samples": lambda b: b["outputs"][0].update(shape=["batch", "x"]),
    "no layers": lambda b: b["language"].update(layers=0),
    "a token too many": lambda b: b["language"].update(eos=[10**30]),
    "no language": lambda b: b.update(language=None),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_no_language_model_is_is_refused(name: str, language_bundle: Path) -> None:
    body = json.loads((language_bundle / "bundle.json").read_text())
    NONSENSE[name](body)
    with pytest.raises(BundleError, match="malformed"):
        Manifest.from_json(json.dumps(body), "bundle.json")


def test_a_cache_that_the_graph_does_not_keep_fails_the_check(language_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "deeper.edgelora"
    shutil.copytree(language_bundle, path)
    body = json.loads((path / "bundle.json").read_text())
    body["language"]["layers"] += 1
    (path / "bundle.json").write_text(json.dumps(body))
    verdict = check(Bundle.open(path))
    assert {one.file for one in verdict.graphs if not one.passed} == {"decode.onnx", "decode-mixed.onnx"}
