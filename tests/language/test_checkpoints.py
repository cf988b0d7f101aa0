"""A directory whose weights are not those that its configuration asks for is refused: nothing is drawn at random."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgelora.errors import ConversionError
from edgelora_tools.sources import open_source
from tests.families import build as build_encoder

TASKS = ("text-generation", "sequence-classification")


def altered(folder: Path, to: Path, **config: Any) -> str:
    """A copy of a model directory with another config.json."""
    shutil.copytree(folder, to)
    body = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(body | config))
    return str(to)


@pytest.mark.parametrize("task", TASKS)
def test_tensors_that_are_missing_are_named(task: str, tmp_path: Path, language_folder: Path) -> None:
    deeper = altered(language_folder, tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(ConversionError, match=r"there is no (model\.)?layers\.2\.input_layernorm\.weight and 8 more"):
        open_source(deeper, task=task)


@pytest.mark.parametrize("task", TASKS)
def test_tensors_of_other_shapes_are_named(task: str, tmp_path: Path, language_folder: Path) -> None:
    wider = altered(language_folder, tmp_path / "wider", intermediate_size=96)
    with pytest.raises(ConversionError, match=r"mlp\.down_proj\.weight is \[32, 64\] and should be \[32, 96\]"):
        open_source(wider, task=task)


@pytest.mark.parametrize("task", TASKS)
def test_code_of_the_directory_is_not_run(
    task: str, tmp_path: Path, language_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody is asked whether it may."""
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a question"))
    classes = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForCausalLM": "own.Model"}
    custom = altered(language_folder, tmp_path / "custom", model_type="own", auto_map=classes)
    (tmp_path / "custom" / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ConversionError, match="custom code"):
        open_source(custom, task=task)


def test_an_encoder_without_a_pooler_has_no_pooled_output(tmp_path: Path) -> None:
    """Checkpoints of masked language models have none."""
    bert: Any = build_encoder("bert")
    bert.pooler = None
    bert.save_pretrained(tmp_path / "bert")
    source = open_source(str(tmp_path / "bert"))
    assert [value.name for value in source.model.graph.outputs] == ["last_hidden_state"]
