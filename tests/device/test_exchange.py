"""`edgelora export` and `import` against the other side's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from edgelora.runtime import Model
from tests.device import tiny
from tests.device.command import QUICK, Command
from tests.test_peft_exchange import randomized

TEXTS = ["make it warm", "turn the light up now please", "stop"]
CLASSES = ("warm", "bright", "quiet")


def task_model(base: Any) -> Any:
    """transformers' classifier around the base: mean pooling by hand, and a head called classifier."""
    config = transformers.BertConfig.from_dict(base.config.to_dict() | {"num_labels": len(CLASSES)})
    model: Any = transformers.BertForTokenClassification(config).eval()
    model.bert.load_state_dict(base.state_dict())
    return model


def mean_logits(model: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The mean over the tokens of a linear head is the head of their mean."""
    with torch.no_grad():
        logits = model(**{name: torch.from_numpy(x) for name, x in feeds.items()}).logits
    weight = torch.from_numpy(feeds["attention_mask"]).unsqueeze(-1)
    return ((logits * weight).sum(1) / weight.sum(1)).numpy()


@pytest.fixture
def from_peft(base: Any, tmp_path: Path) -> tuple[Any, Path]:
    """An adapter with a head that PEFT made for a task model, and its folder."""
    config = peft.LoraConfig(
        task_type="TOKEN_CLS", r=3, lora_alpha=6, target_modules=["query", "value"], alpha_pattern={"value": 4}
    )
    model = randomized(peft.get_peft_model(task_model(base), config))
    model.save_pretrained(str(tmp_path / "from-peft"))
    return model, tmp_path / "from-peft"


def test_a_task_models_adapter_comes_in_and_goes_out_again(
    run: Command,
    base: Any,
    bundle: Path,
    from_peft: tuple[Any, Path],
    tmp_path: Path,
):
    theirs, folder = from_peft
    at = ("--store", tmp_path / "store", "--adapter", "theirs")
    assert "--accept-base" in run.refused("import", bundle, folder, *at)
    status, _, err = run("import", bundle, folder, *at, "--accept-base", "--labels", *CLASSES)
    assert status == 0
    assert "pooling 'mean'" in err
    model = Model.open(bundle, tmp_path / "store")
    feeds = model.encode(TEXTS)
    wanted = mean_logits(theirs, dict(feeds))
    np.testing.assert_allclose(
        np.float32(model.outputs(TEXTS, adapter="theirs")["logits"]), wanted, rtol=1e-5, atol=1e-5
    )
    assert model.predict(TEXTS, adapter="theirs") == [CLASSES[i] for i in wanted.argmax(-1)]
    out = tmp_path / "out"
    assert run.json("export", bundle, *at, "-o", out, "--prefix", "bert")["path"] == str(out)
    back = peft.PeftModel.from_pretrained(task_model(base), str(out)).eval()
    np.testing.assert_allclose(mean_logits(back, dict(feeds)), wanted, rtol=1e-5, atol=1e-5)


def test_labels_that_do_not_fit_are_refused(run: Command, bundle: Path, from_peft: Any, tmp_path: Path):
    command = ("import", bundle, from_peft[1], "--store", tmp_path / "store", "--adapter", "new", "--accept-base")
    assert "2 classes where the head has 3" in run.refused(*command, "--labels", "a", "b")
    assert "given 2 times" in run.refused(*command, "--labels", "a", "b", "a")
    assert run.json("adapters", bundle, "list", "--store", tmp_path / "store") == []


def test_an_export_under_a_prefix_replaces_the_record_of_one_without(
    run: Command,
    bundle: Path,
    tmp_path: Path,
):
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands())
    at = ("--store", tmp_path / "store", "--adapter", "home")
    assert run("train", bundle, *at, "--data", data, *QUICK)[0] == 0
    out = tmp_path / "out"
    assert run("export", bundle, *at, "-o", out)[0] == 0
    assert (out / "edgelora.json").is_file()
    assert run("export", bundle, *at, "-o", out, "--prefix", "bert")[0] == 0
    assert not (out / "edgelora.json").exists()
    names = json.loads((out / "adapter_config.json").read_text())["target_modules"]
    assert names and all(name.startswith("bert.encoder.") for name in names)
    assert "not the path of a module" in run.refused("export", bundle, *at, "-o", tmp_path / "x", "--prefix", "a/b")
    assert not (tmp_path / "x").exists()
