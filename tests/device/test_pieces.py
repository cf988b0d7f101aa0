"""Pieces of a batch: the inputs of one are made while others run, and the sums are the same whatever takes how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from edgelora.adapter import new_adapter
from edgelora.config import LoraConfig
from edgelora.data import NumberSample
from edgelora.errors import DataError
from edgelora.objectives import Inputs, OwnLoss, Regression
from edgelora.pieces import piece_count
from edgelora.runtime import Model
from edgelora.session import SessionSettings
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora.training_config import TrainingConfig

WORDS = ("alpha beta", "gamma eta", "delta epsilon", "beta beta", "eta alpha", "gamma theta", "zeta beta", "theta eta")
ROWS = np.arange(len(WORDS))
CONFIG = TrainingConfig(batch_size=len(WORDS))


class Watched:
    """Inputs that call `before` with the number of the piece that they are asked for."""

    def __init__(self, inner: Inputs) -> None:
        self.inner, self.count = inner, 0
        self.before: Callable[[int], object] = lambda _: None

    def __len__(self) -> int:
        return len(self.inner)

    def lengths(self):
        return self.inner.lengths()

    def feeds(self, rows):
        self.before(self.count)
        self.count += 1
        return self.inner.feeds(rows)


class ByParts(OwnLoss):
    separable = True


def two_cores(open_model, tmp_path, after: Callable[[], object] = lambda: None) -> tuple[Trainer, Watched]:
    """A trainer whose batch is two pieces; `after` is called when the outputs of one are there."""
    model = Model.open(open_model("regression").bundle.path, tmp_path, SessionSettings(threads=2))
    adapter = new_adapter(model.bundle.manifest, LoraConfig(r=4, lora_alpha=8), outputs=1)
    rng = np.random.default_rng(5)
    tensors = {n: t + rng.normal(0, 0.1, t.shape).astype("f4") for n, t in adapter.tensors.items()}
    texts = [NumberSample(text, (0.3 * i,)) for i, text in enumerate(WORDS)]
    compiled = objective_for(model, texts, None, CONFIG)
    assert isinstance(compiled, Regression)
    watched = Watched(compiled.data)

    def loss(outputs, rows):
        after()
        gap = outputs["logits"] - np.float32(0.3) * rows[:, None]
        return float((gap**2).sum()), {"logits": 2 * gap}

    trainer = Trainer(model.bundle, adapter.with_tensors(tensors), ByParts(watched, loss), CONFIG)
    watched.count = 0
    return trainer, watched


def test_the_inputs_of_a_piece_are_made_while_another_runs(open_model, tmp_path):
    runs, seen = threading.Event(), []
    trainer, watched = two_cores(open_model, tmp_path, runs.set)
    watched.before = lambda piece: seen.append(runs.wait(30)) if piece else None
    trainer.step(ROWS)
    assert seen == [True]


def test_no_more_pieces_have_inputs_than_there_are_cores(open_model, tmp_path, monkeypatch):
    ended, waiting = [], []
    trainer, watched = two_cores(open_model, tmp_path, lambda: (time.sleep(0.02), ended.append(True)))
    monkeypatch.setattr("edgelora.trainer.piece_count", lambda *_: len(ROWS))
    watched.before = lambda piece: waiting.append(piece - len(ended))
    trainer.step(ROWS)
    assert len(ended) == len(ROWS)
    assert max(waiting) <= 1, "those that run beside the one that is made"


def test_the_gradients_have_the_same_bits_whatever_takes_how_long(open_model, tmp_path):
    found = []
    for delays in ((0.0, 0.0, 0.0), (0.05, 0.0, 0.0), (0.0, 0.05, 0.0), (0.0, 0.0, 0.05)):
        trainer, watched = two_cores(open_model, tmp_path, lambda d=delays: time.sleep(d[2]))
        watched.before = lambda piece, d=delays: time.sleep(d[piece])
        loss = trainer.accumulate(ROWS)
        found.append((loss, trainer.gradients()))
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, found[0][1][name], err_msg=name)


def test_inputs_that_cannot_be_made_end_the_step_after_what_runs(open_model, tmp_path):
    ended = []
    trainer, watched = two_cores(open_model, tmp_path, lambda: (time.sleep(0.1), ended.append(True)))

    def before(piece: int) -> None:
        if piece:
            raise DataError("the picture is gone")

    watched.before = before
    values = trainer.flat.copy()
    with pytest.raises(DataError, match="gone"):
        trainer.step(ROWS)
    assert ended
    np.testing.assert_array_equal(trainer.flat, values)
    assert trainer.step_number == 0


@pytest.mark.parametrize(
    ("samples", "most", "workers", "count"), [(8, 1, 2, 8), (8, 3, 2, 4), (8, 5, 2, 2), (8, 3, 1, 3)]
)
def test_each_worker_has_as_many_pieces(samples, most, workers, count):
    assert piece_count(samples, most, workers) == count
    assert piece_count(samples, float("inf"), workers) == workers
