"""A store of very many adapters: switching does as little as with one, and memory stays bounded."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from benchmarks.inference import link_copies
from edgelora import LoraConfig, Model
from edgelora.adapter import new_adapter

MANY = 10_000
_asked: Counter[str] = Counter()
_listening: list[bool] = []


def _listen(event: str, _: object) -> None:
    if _listening and event in ("open", "os.listdir", "os.scandir"):
        _asked[event] += 1


def questions(model: Model, name: str) -> dict[str, int]:
    """How often activating asks the disk for files and folders."""
    _asked.clear()
    _listening.append(True)
    model.activate(name)
    _listening.clear()
    return dict(_asked)


def test_ten_thousand_adapters(bundle: Path, tmp_path: Path):
    sys.addaudithook(_listen)
    model = Model.open(bundle, tmp_path / "store", adapter_memory=200_000)
    adapter = new_adapter(model.bundle.manifest, LoraConfig(r=1, lora_alpha=1), ("x", "y"))
    model.store.save("user-0", adapter)
    first, again = questions(model, "user-0"), questions(model, "user-0")
    assert sum(again.values()) < sum(first.values()), "what is in memory is not read again"
    link_copies(model.store.root, "user-0", MANY)
    assert len(model.store.list()) == MANY
    assert questions(model, "user-0") == again
    assert questions(model, f"user-{MANY - 1}") == first
    assert questions(model, f"user-{MANY - 1}") == again
    size = model.activate("user-0").size
    for i in range(0, MANY, 25):
        model.activate(f"user-{i}")
    assert 0 < model.cache.size <= 200_000
    assert len(model.cache) == 200_000 // size < MANY // 25
    assert questions(model, "user-0") == first, "what fell out is opened again"
