"""The state of an unfinished run: any altered byte is seen, and a forged one does no more than raise TrainingError."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from edgelora import Key, LoraConfig, Model, StoreError, TrainingConfig, TrainingError, train
from edgelora.data import TextSample
from edgelora.training_state import STATE_FILE, state_digest
from tests.device import tiny

SAMPLES = [TextSample(row["text"], row["label"]) for row in tiny.commands(12)]
CONFIG = TrainingConfig(num_train_epochs=3, batch_size=4, save_steps=1, learning_rate=1e-2)


class Stopped(Exception):
    pass


def run(model: Model, stop_at: int | None = None, **options: Any):
    def callback(step: Any, _progress: Any) -> None:
        if step.step == stop_at:
            raise Stopped

    settings: dict[str, Any] = {"lora": LoraConfig(r=2), "config": CONFIG, "callback": callback}
    return train(model, "ann", SAMPLES, **{**settings, **options})


def stopped(model: Model) -> Path:
    with pytest.raises(Stopped):
        run(model, stop_at=5)
    return model.store.state_path("ann") / STATE_FILE


def test_an_altered_state_is_refused_and_can_be_dropped(open_model: Callable[..., Model]):
    model = open_model()
    path = stopped(model)
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 60):
        altered = bytearray(content)
        altered[place] ^= 4
        path.write_bytes(altered)
        with pytest.raises(TrainingError, match="--discard"):
            run(model)
    for cut in (0, 7, 8, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(TrainingError, match="damaged"):
            run(model)
    path.write_bytes(content)
    assert run(model).resumed_at == 5


def forged(content: bytes, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """A state with a digest that is right, whatever it says."""
    arrays, header = load(content), json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    progress = json.loads(header["progress"])
    change(arrays, progress)
    metadata = {"run_id": header["run_id"], "progress": json.dumps(progress)}
    return save(arrays, metadata | {"sha256": state_digest(arrays, metadata)})


FORGERIES: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "step": lambda a, p: p.update(step="5"),
    "far": lambda a, p: p.update(step=10**9),
    "negative": lambda a, p: p.update(step=-1),
    "history": lambda a, p: p.update(history=[1]),
    "losses": lambda a, p: p.update(epoch_losses=["x"]),
    "best epoch": lambda a, p: p.update(best_epoch=7),
    "unknown": lambda a, p: p.update(other=1),
    "list": lambda a, p: p.clear() or p.update({"": 1}),
    "size": lambda a, p: a.update(current=np.zeros(3, np.float32)),
    "type": lambda a, p: a.update(current=a["current"].astype(np.float64)),
    "nan": lambda a, p: a.update(current=a["current"] * np.float32("nan")),
    "best": lambda a, p: a.update(best=np.zeros(2, np.float32)),
    "no current": lambda a, p: a.pop("current"),
    "no steps": lambda a, p: a.pop("optimizer.steps"),
    "steps": lambda a, p: a.update({"optimizer.steps": np.zeros(0, np.int64)}),
    "half": lambda a, p: [a.pop(name) for name in list(a) if ".second." in name],
    "moments": lambda a, p: a.update({name: x[:1].copy() for name, x in a.items() if ".first." in name}),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_state_is_refused(open_model: Callable[..., Model], forgery: str):
    model = open_model()
    path = stopped(model)
    path.write_bytes(forged(path.read_bytes(), FORGERIES[forgery]))
    with pytest.raises(TrainingError, match="--discard"):
        run(model)
    assert run(model, discard=True, restart=True).steps == 9


def test_with_a_key_the_state_is_encrypted_and_continued(bundle: Path, tmp_path: Path):
    key = Key(bytes(32))
    model = Model.open(bundle, tmp_path / "store", key=key)
    path = stopped(model)
    assert b"run_id" not in path.read_bytes() and path.read_bytes().startswith(b"ELSEALED")
    with pytest.raises(StoreError, match="encrypted"):
        run(Model.open(bundle, tmp_path / "store"))
    with pytest.raises(StoreError, match="another key"):
        run(Model.open(bundle, tmp_path / "store", key=Key(bytes(31) + b"1")))
    assert run(model).resumed_at == 5
    assert model.predict(["make the room warm"], "ann")
    assert not [p for p in (tmp_path / "store").rglob("*") if p.is_file() and b"classifier" in p.read_bytes()]


def test_a_state_with_two_learning_rates_is_continued(open_model: Callable[..., Model]):
    """LoRA+ keeps an optimizer's state of two groups."""
    model = open_model()
    config = replace(CONFIG, loraplus_lr_ratio=4.0)
    with pytest.raises(Stopped):
        run(model, stop_at=5, config=config)
    assert run(model, config=config).resumed_at == 5
