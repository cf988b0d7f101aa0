"""Training of every task of text on a tiny real base."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgelora import TrainingConfig, evaluate
from edgelora.data import NumberSample, Sample
from edgelora.errors import ConfigError, DataError
from edgelora.tasks import objective_for
from tests.device.learning import FAST, numbered, pairs, samples, tagged, trained


@pytest.mark.parametrize(
    ("task", "data", "settings", "share"),
    [
        ("regression", numbered(), {}, 0.3),
        ("token-classification", tagged(), {}, 0.5),
        ("token-classification", tagged(), {"class_weight": "balanced"}, 0.5),
        ("sentence-embedding", pairs(), {}, 0.9),
        ("sentence-embedding", pairs(negative=True), {}, 0.9),
        ("sentence-embedding", pairs(negative=True), {"loss": "triplet"}, 0.7),
        ("sequence-classification", samples(), {"optim": "sgd", "learning_rate": 0.05}, 0.8),
    ],
)
def test_every_task_lowers_its_loss(open_model, task: str, data: list[Any], settings: dict[str, Any], share: float):
    config = TrainingConfig(**{"num_train_epochs": 12, "batch_size": 8, "learning_rate": 1e-2} | settings)
    model = open_model(task)
    report, adapter = trained(model, config, data=data)
    assert report.history[-1]["train_loss"] < share * report.history[0]["train_loss"]
    metrics = evaluate(model.bundle, adapter, objective_for(model, data, adapter.labels, config))
    assert all(np.isfinite(value) for value in metrics.values())
    if task == "regression":
        assert metrics["mse"] < 0.3
        predicted = np.asarray(model.predict([s.text for s in data], "a"))
        targets = np.asarray([s.target for s in data])
        assert ((predicted - targets) ** 2).mean() == pytest.approx(metrics["mse"], rel=1e-4)
    if task == "token-classification":
        assert metrics["accuracy"] > 0.8


def test_regression_of_several_numbers(open_model):
    model = open_model("regression")
    data: list[Sample] = [NumberSample(s.text, (*s.target, 2.0)) for s in numbered()]
    trained(model, TrainingConfig(num_train_epochs=12, batch_size=8, learning_rate=1e-2), data=data)
    assert np.shape(model.predict(["make the room warm"], "a")) == (1, 2)


def test_another_number_of_targets_is_refused_by_training_and_evaluation(open_model):
    model = open_model("regression")
    _, adapter = trained(model, FAST, data=numbered())
    two: list[Sample] = [NumberSample(s.text, (*s.target, 2.0)) for s in numbered()]
    with pytest.raises((DataError, ConfigError), match="2"):
        trained(model, FAST, data=two)
    with pytest.raises((DataError, ConfigError), match="2"):
        trained(model, FAST, "b", data=numbered(), validation=two)
    with pytest.raises((DataError, ConfigError), match="2"):
        evaluate(model.bundle, adapter, objective_for(model, two, adapter.labels, FAST))


def test_the_triplet_loss_without_negatives_is_refused(open_model):
    with pytest.raises(DataError, match="negative"):
        trained(open_model("sentence-embedding"), TrainingConfig(loss="triplet"), data=pairs())


@pytest.mark.parametrize("task", ["sequence-classification", "sentence-embedding"])
def test_an_unknown_loss_is_refused_with_the_known_ones(open_model, task: str):
    data = samples() if task == "sequence-classification" else pairs()
    known = "cross-entropy" if task == "sequence-classification" else "contrastive"
    with pytest.raises(ConfigError, match=known):
        trained(open_model(task), TrainingConfig(loss="hinge"), data=data)
