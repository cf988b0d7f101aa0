"""64 threads with 64 people at once, alone and beside a training: no errors, and nobody gets another's answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.people import serve
from edgelora import LoraConfig, Model, TrainingConfig, train
from edgelora.adapter import new_adapter
from edgelora.data import TextSample
from tests.device import tiny

PEOPLE = 64
SAMPLES = [TextSample(row["text"], row["label"]) for row in tiny.commands(24)]


@pytest.fixture
def model(bundle: Path, tmp_path: Path) -> Model:
    """A store of 64 people whose adapters differ, with memory for a few of them."""
    opened = Model.open(bundle, tmp_path / "store", adapter_memory=100_000)
    rng = np.random.default_rng(0)
    for i in range(PEOPLE):
        fresh = new_adapter(opened.bundle.manifest, LoraConfig(r=1 + i % 3), ("x", "y", "z"))
        values = {n: rng.standard_normal(t.shape).astype(np.float32) for n, t in fresh.tensors.items()}
        opened.store.save(f"user-{i}", fresh.with_tensors(values))
    return opened


@pytest.mark.parametrize("training", [False, True])
def test_nobody_gets_another_s_answer(model: Model, training: bool):
    texts = [tiny.commands()[i % 24]["text"] for i in range(PEOPLE)]
    names = [f"user-{i}" for i in range(PEOPLE)]
    done = threading.Event()
    trained: list[int] = []

    def learn() -> None:
        seed = 0
        while not done.is_set():
            config = TrainingConfig(num_train_epochs=1, batch_size=8, learning_rate=1e-2, seed=seed)
            trained.append(train(model, "learner", SAMPLES, config=config).version)
            seed += 1

    beside: Callable[[], None] | None = learn if training else None
    learner = threading.Thread(target=beside) if beside else None
    if learner is not None:
        learner.start()
    try:
        served = serve(model, names, texts, calls=4)
    finally:
        done.set()
        if learner is not None:
            learner.join()
    assert served.errors == []
    assert served.wrong == []
    assert served.answers == PEOPLE * 4
    assert 0 < model.cache.size <= 100_000, "memory is bounded by the cache's setting"
    assert not training or (trained and model.store.current_version("learner") == trained[-1])
