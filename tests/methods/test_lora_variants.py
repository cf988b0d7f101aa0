"""LoRA+ and LoRA-FA: ways to train LoRA, held against PEFT's optimizers step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft.optimizers.lorafa
import pytest
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

from edgelora import LoraConfig, TrainingConfig, VeraConfig
from edgelora.adapter import read_adapter, write_adapter
from edgelora.errors import ConfigError
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from tests.device import tiny
from tests.methods.checks import made_trainer
from tests.methods.twins import InPeft
from tests.methods.world import LABELS, World, loss_in_torch, samples

CONFIG = LoraConfig(r=3, lora_alpha=6, target_modules=("query", "value"))
RUN = TrainingConfig(
    num_train_epochs=1, batch_size=8, learning_rate=5e-3, max_grad_norm=0, lr_scheduler_type="constant"
)
STEPS = 5


class WithHead(torch.nn.Module):
    """The base in PEFT, and a head whose parameters are those of ours."""

    def __init__(self, base: Any, adapter: Any) -> None:
        super().__init__()
        self.base = base
        self.head = torch.nn.Linear(adapter.tensors["classifier.weight"].shape[1], len(LABELS))
        self.head.weight.data = torch.from_numpy(adapter.tensors["classifier.weight"].copy())
        self.head.bias.data = torch.from_numpy(adapter.tensors["classifier.bias"].copy())


def compared(world: World, run: TrainingConfig, folder: Path, optimizer_of: Any) -> tuple[Trainer, Any]:
    """Train the same adapter here and in torch on the same batches; the losses must agree step by step."""
    adapter, data, model = world.adapter(CONFIG, head=True), samples(), world.classifier
    trainer = Trainer(model.bundle, adapter, objective_for(model, data, adapter.labels, run), run)
    without_head = {n: t for n, t in adapter.tensors.items() if "lora" in n}
    write_adapter(replace(adapter, tensors=without_head, config=CONFIG), folder / "start")
    start = InPeft(None).load(tiny.module(), folder / "start", trainable=True)
    whole = WithHead(start, adapter)
    optimizer = optimizer_of(whole)
    for step in range(STEPS):
        rows = np.arange(step, step + 8)
        ours = trainer.step(rows).loss
        optimizer.zero_grad()
        labels = torch.tensor([LABELS.index(data[i].label) for i in rows])
        feeds = world.feeds(tuple(data[i].text for i in rows))
        loss = loss_in_torch(whole.base, feeds, (whole.head.weight, whole.head.bias), labels)
        loss.backward()
        optimizer.step()
        assert ours == pytest.approx(loss.item(), rel=1e-4), step
    whole.base.save_pretrained(str(folder / "end"))
    return trainer, read_adapter(folder / "end", model.bundle.manifest, accept_base=True)


def assert_moved_alike(trainer: Trainer, theirs: Any) -> None:
    """By norms: where a gradient is near zero, Adam follows its sign."""
    for name, tensor in theirs.tensors.items():
        gap = np.linalg.norm(trainer.current().tensors[name] - tensor)
        assert gap <= 5e-3 * np.linalg.norm(tensor - trainer.adapter.tensors[name]) + 1e-7, name


def test_loraplus_is_pefts(world: World, tmp_path: Path):
    run = replace(RUN, loraplus_lr_ratio=8.0)

    def optimizer(model: Any) -> Any:
        return create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=run.learning_rate, loraplus_lr_ratio=8.0, weight_decay=0.0
        )

    trainer, theirs = compared(world, run, tmp_path, optimizer)
    assert_moved_alike(trainer, theirs)
    ours = trainer.current()
    moved = {name: np.abs(ours.tensors[name] - trainer.adapter.tensors[name]).max() for name in ours.tensors}
    assert moved["classifier.bias"] > 4 * moved["classifier.weight"]


def test_lora_fa_is_pefts(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without PEFT's rounding to bfloat16, and with our ε in Adam."""
    monkeypatch.setattr(peft.optimizers.lorafa, "is_bf16_available", lambda: False)
    run = replace(RUN, lora_fa=True)

    def optimizer(model: Any) -> Any:
        made = create_lorafa_optimizer(model.base, r=CONFIG.r, lora_alpha=int(CONFIG.lora_alpha), lr=run.learning_rate)
        for group in made.param_groups:
            group["eps"] = 1e-8
        head = torch.optim.AdamW(model.head.parameters(), lr=run.learning_rate, weight_decay=0.0)
        return Both(made, head)

    trainer, theirs = compared(world, run, tmp_path, optimizer)
    assert_moved_alike(trainer, theirs)
    for name, tensor in trainer.current().tensors.items():
        if name.endswith("lora_A"):
            np.testing.assert_array_equal(tensor, trainer.adapter.tensors[name])
    assert not any(name.endswith("lora_A") for name in trainer.gradients())


class Both:
    """Two optimizers as one."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()


@pytest.mark.parametrize("change", [{"loraplus_lr_ratio": 4.0}, {"lora_fa": True}])
def test_other_methods_are_refused(world: World, change: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"{next(iter(change))} is for LoRA"):
        made_trainer(world, VeraConfig(r=4), replace(RUN, **change))


def test_runs_without_them_keep_their_identity():
    assert {"loraplus_lr_ratio", "lora_fa"}.isdisjoint(RUN.decisive())
    assert replace(RUN, lora_fa=True).decisive()["lora_fa"] is True
    assert replace(RUN, loraplus_lr_ratio=2.0).decisive()["loraplus_lr_ratio"] == 2.0
