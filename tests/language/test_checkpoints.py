"""A directory whose weights are not those that its configuration asks for is refused: nothing is drawn at random."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from edgelora.errors import ConversionError
from edgelora_tools.sources import open_source
from edgelora_tools.sources.pretrained import load_pretrained
from tests.families import build as build_encoder

hf: Any = transformers
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


def test_what_only_pretraining_reads_may_be_missing(tmp_path: Path) -> None:
    """As in wav2vec2-base-960h."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolved = {"conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "num_conv_pos_embeddings": 4}
    groups = {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 1}
    model: Any = hf.Wav2Vec2Model(hf.Wav2Vec2Config(**sizes, **convolved, **groups))
    del model.masked_spec_embed
    model.save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="there is no masked_spec_embed"):
        load_pretrained(hf.AutoModel, tmp_path, tmp_path)
    assert load_pretrained(hf.AutoModel, tmp_path, tmp_path, ["pooler", "masked_spec_embed"])[1] == {
        "masked_spec_embed"
    }


def test_an_encoder_without_a_pooler_has_no_pooled_output(tmp_path: Path) -> None:
    """Checkpoints of masked language models have none."""
    bert: Any = build_encoder("bert")
    bert.pooler = None
    bert.save_pretrained(tmp_path / "bert")
    source = open_source(str(tmp_path / "bert"))
    assert [value.name for value in source.model.graph.outputs] == ["last_hidden_state"]
