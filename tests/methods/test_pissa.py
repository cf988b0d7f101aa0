"""PiSSA: what it begins as, PEFT's run step by step, and LoRA of twice the rank as what is left of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgelora import LoraConfig, TrainingConfig
from edgelora.adapter import CONFIG_FILE, RECORD_FILE, TENSORS_FILE, new_adapter, read_adapter, to_files, write_adapter
from edgelora.errors import AdapterError, ConfigError
from edgelora.manifest import InsertionPoint
from edgelora.methods import PISSA, Tensors
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from tests.device import tiny
from tests.methods.cases import WHOLE, Case
from tests.methods.checks import (
    a_killed_run_resumes_to_the_same_bits,
    another_base_is_refused,
    made_trainer,
    merging_is_the_twins,
    off_is_the_base,
    our_adapters_compute_the_same_in_the_twin,
    several_at_once_are_each_alone,
    the_twins_adapters_compute_the_same_here,
    what_does_not_fit_is_named,
)
from tests.methods.test_command import QUICK, run
from tests.methods.test_lora_variants import WithHead
from tests.methods.twins import InPeft
from tests.methods.world import LABELS, World, loss_in_torch, samples

SETTINGS: dict[str, Any] = {"r": 4, "lora_alpha": 6, "rank_pattern": {"value": 3}, "init_lora_weights": "pissa"}
CASE = Case(
    "pissa",
    LoraConfig(target_modules=WHOLE, **SETTINGS),
    InPeft(peft.LoraConfig(target_modules=list(WHOLE), **SETTINGS)),
)
STEPS = 5


@pytest.mark.parametrize(
    "check",
    [
        off_is_the_base,
        the_twins_adapters_compute_the_same_here,
        our_adapters_compute_the_same_in_the_twin,
        merging_is_the_twins,
        several_at_once_are_each_alone,
        a_killed_run_resumes_to_the_same_bits,
        another_base_is_refused,
        what_does_not_fit_is_named,
    ],
    ids=lambda check: check.__name__,
)
def test_what_of_the_contract_is_its_own(world: World, check: Any, tmp_path: Path):
    """All but the gradients and the files: these are of LoRA of twice the rank."""
    check(world, CASE, tmp_path)


def test_files_are_loras(world: World, tmp_path: Path):
    """Read again, they compute the same, and write the same bytes."""
    adapter = world.adapter(replace(CASE.ours, use_rslora=True), head=True)
    write_adapter(adapter, tmp_path)
    again = read_adapter(tmp_path)
    assert isinstance(again.config, LoraConfig) and again.config.init_lora_weights is True
    assert (again.config.r, dict(again.config.rank_pattern)) == (8, {"value": 6})
    assert to_files(again) == to_files(adapter)
    feeds, expected = (world.classifier.bundle.feeds(one) for one in (again, adapter))
    for name, array in expected.items():
        np.testing.assert_allclose(feeds[name], array, rtol=1e-6, atol=0, err_msg=name)


def test_five_steps_are_pefts(world: World, tmp_path: Path):
    """Losses, and what both save: PEFT by its own conversion of PiSSA to LoRA."""
    model, data = world.classifier, samples()
    config = TrainingConfig(batch_size=8, learning_rate=5e-3, max_grad_norm=0, lr_scheduler_type="constant")
    adapter = new_adapter(model.bundle.manifest, CASE.ours, LABELS, base=model.bundle)
    trainer = Trainer(model.bundle, adapter, objective_for(model, data, adapter.labels, config), config)
    theirs: Any = CASE.twin.attach(tiny.module()).eval()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(str(tmp_path / "first"))
    theirs.peft_config["default"].init_lora_weights = "pissa"
    whole = WithHead(theirs, adapter)
    optimizer = torch.optim.AdamW(whole.parameters(), lr=config.learning_rate, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        rows = np.arange(step, step + 8)
        losses.append(trainer.step(rows).loss)
        optimizer.zero_grad()
        labels = torch.tensor([LABELS.index(data[i].label) for i in rows])
        feeds = world.feeds(tuple(data[i].text for i in rows))
        loss = loss_in_torch(theirs, feeds, (whole.head.weight, whole.head.bias), labels)
        loss.backward()
        optimizer.step()
        assert losses[-1] == pytest.approx(loss.item(), abs=1e-5), step
    assert losses[-1] < losses[0]
    theirs.save_pretrained(str(tmp_path / "end"), path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    converted = read_adapter(tmp_path / "end", model.bundle.manifest, accept_base=True)
    ours = trainer.current().saved()
    assert isinstance(ours.config, LoraConfig) and isinstance(converted.config, LoraConfig)
    for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"):
        assert getattr(ours.config, name) == getattr(converted.config, name), name
    for point in ours.points:
        delta, wanted = (one.tensors[f"{point}.lora_A"] @ one.tensors[f"{point}.lora_B"] for one in (ours, converted))
        assert ours.tensors[f"{point}.lora_A"].shape == converted.tensors[f"{point}.lora_A"].shape
        assert np.linalg.norm(delta - wanted) <= 5e-3 * np.linalg.norm(wanted), point


class OneWeight:
    """A base of one point, `p`."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = weight

    def norms(self, low: Tensors) -> dict[str, Any]:
        raise NotImplementedError

    def values(self, names: Any) -> dict[str, Any]:
        assert list(names) == ["p.base_weight"]
        return {"p.base_weight": self.weight}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.booleans())
def test_the_beginning_is_the_nearest_of_its_rank(rows: int, columns: int, rank: int, seed: int, exact: bool):
    """s·A0·B0 against torch's singular values; both halves of the feeds cancel."""
    rng = np.random.default_rng(seed)
    decay = 0.7 ** np.arange(columns)
    weight = (rng.standard_normal((rows, columns)) * decay).astype(np.float32)
    point = InsertionPoint("p", "MatMul", rows, columns)
    config = LoraConfig(r=rank, lora_alpha=3, init_lora_weights="pissa" if exact else "pissa_niter_16")
    if rank > min(rows, columns):
        assert any("at most" in problem for problem in PISSA.problems(config, {}, [point]))
        return
    tensors = PISSA.new(config, [point], rng, OneWeight(weight))
    found = config.scale("p") * tensors["p.lora_A"].astype(np.float64) @ tensors["p.lora_B"]
    gap = np.linalg.norm(weight - found)
    least = np.linalg.norm(torch.linalg.svdvals(torch.from_numpy(weight).double()).numpy()[rank:])
    assert gap <= least * (1 + (1e-5 if exact else 0.1)) + 1e-5 * np.linalg.norm(weight)
    feeds = PISSA.feeds(config, tensors, [point], OneWeight(weight))
    assert np.abs(feeds["p.lora_A"] @ feeds["p.lora_B"]).max() <= 1e-5 * np.abs(weight).max()


def test_the_command_trains_continues_and_exchanges(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle, store = world.classifier.bundle.path, ("--store", tmp_path / "store")
    data = tiny.write_jsonl(tmp_path / "data.jsonl", tiny.commands())
    more = tiny.write_jsonl(tmp_path / "more.jsonl", tiny.commands(12))
    train = ("train", bundle, *store, "--adapter", "a", "--json", *QUICK, "--rank", "3", "--init", "pissa")
    status, report, err = run(capsys, *train, "--data", data)
    assert status == 0, err
    assert report["history"][-1]["train_loss"] < report["history"][0]["train_loss"]
    half = report["trainable_parameters"]
    assert run(capsys, *train, "--data", data)[1]["already_done"]
    shown = ("eval", bundle, *store, "--data", data, "--json", "--adapter")
    assert run(capsys, "export", bundle, *store, "--adapter", "a", "-o", tmp_path / "peft", "--json")[0] == 0
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == 6
    assert run(capsys, "import", bundle, *store, "--adapter", "b", tmp_path / "peft", "--json")[0] == 0
    assert run(capsys, *shown, "a")[1]["loss"] == run(capsys, *shown, "b")[1]["loss"]
    status, report, err = run(capsys, *train, "--data", more)
    assert status == 0, err
    assert not report["already_done"] and report["version"] == 2
    assert report["trainable_parameters"] > 1.5 * half  # all of it learns now


def test_pefts_own_is_imported(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    CASE.twin.save(CASE.twin.attach(tiny.module()), tmp_path / "peft")
    bundle, store = world.features.bundle.path, ("--store", tmp_path / "store")
    status, _, err = run(
        capsys, "import", bundle, *store, "--adapter", "a", tmp_path / "peft", "--accept-base", "--json"
    )
    assert status == 0, err
    with pytest.raises(AdapterError, match=r"init_lora_weights='pissa' has changed the base .* give base=bundle"):
        read_adapter(tmp_path / "peft", world.features.bundle.manifest, accept_base=True)


def test_pefts_dropout_says_nothing_of_a_finished_adapter(world: World, tmp_path: Path):
    bundle, read = world.features.bundle, []
    for dropout in (0.0, 0.1):
        made = peft.LoraConfig(target_modules=list(WHOLE), lora_dropout=dropout, **SETTINGS)
        twin, folder = InPeft(made), tmp_path / str(dropout)
        twin.save(twin.attach(tiny.module()), folder)
        read.append(read_adapter(folder, bundle.manifest, accept_base=True, base=bundle))
    assert to_files(read[0]) == to_files(read[1])
    body = json.loads((tmp_path / "0.1" / CONFIG_FILE).read_text())
    (tmp_path / "0.1" / CONFIG_FILE).write_text(json.dumps({**body, "lora_dropout": 2}))
    with pytest.raises(AdapterError, match="lora_dropout must"):
        read_adapter(tmp_path / "0.1", bundle.manifest, accept_base=True, base=bundle)


def test_what_does_not_fit_is_refused_before_the_base_is_asked(world: World, tmp_path: Path):
    CASE.twin.save(CASE.twin.attach(tiny.module()), tmp_path)
    tensors = load_file(tmp_path / TENSORS_FILE)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: np.concatenate([tensors[name]] * 2)}, tmp_path / TENSORS_FILE)
    with pytest.raises(AdapterError, match=r"lora_B has shape .* is expected"):
        read_adapter(tmp_path, world.features.bundle.manifest, accept_base=True)


def test_files_with_a_record_that_are_still_pissas_are_refused(world: World, tmp_path: Path):
    """What is written is LoRA: such files are altered, and the beginning is not in them."""
    write_adapter(world.adapter(LoraConfig(target_modules=WHOLE, r=2)), tmp_path)
    read_adapter(tmp_path)
    for name in (CONFIG_FILE, RECORD_FILE):
        body = json.loads((tmp_path / name).read_text())
        (body if name == CONFIG_FILE else body["lora"])["init_lora_weights"] = "pissa"
        (tmp_path / name).write_text(json.dumps(body))
    with pytest.raises(AdapterError, match=rf"{RECORD_FILE}: .*init_lora_weights='pissa'.* LoRA"):
        read_adapter(tmp_path)


def test_what_it_cannot_be_is_refused(world: World):
    bundle = world.classifier.bundle
    others: list[dict[str, Any]] = [{"use_dora": True}, {"lora_dropout": 0.1}]
    for other in others:
        with pytest.raises(ConfigError, match=f"{next(iter(other))} and init_lora_weights='pissa' exclude each other"):
            LoraConfig(init_lora_weights="pissa", **other)
    for value in ("pissa_niter_0", "olora", False, None, {}):
        with pytest.raises(ConfigError, match="init_lora_weights must be"):
            LoraConfig(init_lora_weights=value)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="twice the rank"):
        LoraConfig(r=40_000, init_lora_weights="pissa")
    with pytest.raises(ConfigError, match=r"query has rank 33, and PiSSA there at most 32"):
        new_adapter(bundle.manifest, replace(CASE.ours, r=33), LABELS, base=bundle)
    with pytest.raises(ConfigError, match="give base=bundle"):
        new_adapter(bundle.manifest, CASE.ours, LABELS)


def test_lora_fa_keeps_the_beginning_of_a(world: World):
    trainer = made_trainer(world, CASE.ours, TrainingConfig(batch_size=8, lora_fa=True))
    trainer.step(np.arange(8))
    for name, tensor in trainer.current().tensors.items():
        learns = name.endswith(("lora_B", "weight", "bias"))
        assert np.array_equal(tensor, trainer.adapter.tensors[name]) != learns, name
