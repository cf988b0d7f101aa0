"""Several threads, and several adapters in one batch, on one model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgelora import TrainingConfig
from edgelora.adapter import to_files
from edgelora.data import TextSample
from edgelora.errors import ConfigError, StoreError
from tests.device.learning import FAST, relabelled, samples, trained


def in_threads(*works) -> list[Any]:
    """Results of the functions, run at once."""
    results: list[Any] = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def run(i: int):
        barrier.wait()
        try:
            results[i] = works[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_threads_train_and_predict_as_one_would(open_model):
    """Different adapters of one model at once: training, and then predicting, per call, from two threads."""
    shifted = relabelled(samples(), {"warm": "quiet", "quiet": "bright", "bright": "warm"})
    config = TrainingConfig(num_train_epochs=10, batch_size=8, learning_rate=1e-2)
    alone = open_model(store="alone")
    trained(alone, config, "a")
    trained(alone, config, "b", data=shifted)
    together = open_model(store="together")
    results = in_threads(lambda: trained(together, config, "a"), lambda: trained(together, config, "b", data=shifted))
    assert not any(isinstance(r, Exception) for r in results), results
    for name in ("a", "b"):
        assert to_files(alone.store.load(name)) == to_files(together.store.load(name))

    text = [s.text for s in samples()]
    expected = {name: alone.predict_proba(text, name) for name in ("a", "b")}
    assert not np.allclose(expected["a"], expected["b"], atol=0.1)

    def repeat(name: str):
        return [together.predict_proba(text, name) for _ in range(40)]

    answers = in_threads(lambda: repeat("a"), lambda: repeat("b"))
    for name, got in zip(("a", "b"), answers, strict=True):
        assert all(np.array_equal(expected[name], one) for one in got)


def test_one_adapter_is_not_trained_twice_at_once(open_model):
    """The second is refused while the first holds the adapter, also within a process."""
    model = open_model()
    started, release = threading.Event(), threading.Event()

    def hold(_step, _progress):
        started.set()
        release.wait(20)

    def second():
        started.wait(20)
        try:
            return trained(model, FAST)
        finally:
            release.set()

    first, refused = in_threads(lambda: trained(model, FAST, callback=hold), second)
    assert not isinstance(first, Exception)
    assert isinstance(refused, StoreError) and "in use" in str(refused)


def test_rows_with_different_adapters(open_model):
    """`adapters` gives one per row: by name, in memory, and mixed."""
    model = open_model()
    shifted = relabelled(samples(), {"warm": "x", "quiet": "y", "bright": "z"})
    config = TrainingConfig(num_train_epochs=16, batch_size=8, learning_rate=1e-2)
    _, a = trained(model, config, "a")
    trained(model, config, "b", data=[*shifted, TextSample("the hall", "w")])
    text = [s.text for s in samples()]
    a_says, b_says = np.array(model.predict(text, "a")), np.array(model.predict(text, "b"))
    mixed: Sequence[Any] = [("a", "b", a)[i % 3] for i in range(len(text))]
    wanted = [b_says[i] if one == "b" else a_says[i] for i, one in enumerate(mixed)]
    assert model.predict(text, adapters=mixed) == wanted
    assert set(a_says) == {"bright", "quiet", "warm"} and {"x", "y", "z"} <= set(b_says)
    with pytest.raises(ConfigError, match=r"2 adapters for 24 rows"):
        model.predict(text, adapters=["a", "b"])
