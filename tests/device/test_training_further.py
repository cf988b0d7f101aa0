"""Training an adapter that exists: further, the same run again, from the start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgelora import LoraConfig, TrainingConfig, evaluate
from edgelora.adapter import to_files
from edgelora.data import Sample, TextSample
from edgelora.errors import ConfigError
from edgelora.tasks import objective_for
from tests.device import tiny
from tests.device.learning import FAST, assert_close, samples, trained


def test_training_further_extends_the_labels(open_model):
    model = open_model()
    first, before = trained(model, FAST)
    cold: list[Sample] = [TextSample(f"make it cold {e}".strip(), "cold") for e in tiny.ENDINGS]
    config = TrainingConfig(num_train_epochs=12, batch_size=8, learning_rate=1e-2)
    second, after = trained(model, config, data=samples() + cold)
    assert before.labels == ("bright", "quiet", "warm")
    assert after.labels == ("bright", "quiet", "warm", "cold")
    assert (first.version, second.version) == (1, 2)
    assert model.predict(["make it cold now"], "a") == ["cold"]
    accuracy = np.mean(np.array(model.predict([s.text for s in samples()], "a")) == [s.label for s in samples()])
    assert accuracy > 0.9


def test_training_further_begins_where_the_adapter_was(open_model):
    model = open_model()
    _, before = trained(model, FAST)
    seen: list[float] = []
    trained(model, FAST, again=True, callback=lambda step, _progress: seen.append(step.loss))
    objective = objective_for(model, samples(), before.labels, FAST)
    assert seen[0] == pytest.approx(evaluate(model.bundle, before, objective)["loss"], abs=0.25)
    assert seen[0] < 0.9


def test_the_same_run_again_trains_nothing(open_model):
    model = open_model()
    first, adapter = trained(model, FAST)
    steps: list[int] = []
    second, same = trained(model, FAST, callback=lambda step, _progress: steps.append(step.step))
    assert second.already_done and not first.already_done
    assert steps == []
    assert second.version == first.version == 1
    assert to_files(adapter) == to_files(same)


def test_again_trains_a_further_version_each_time(open_model):
    model = open_model()
    trained(model, FAST)
    report, _ = trained(model, FAST, again=True)
    assert (report.version, report.already_done) == (2, False)
    assert trained(model, FAST, again=True)[0].version == 3


def test_restart_forgets_labels_and_values(open_model):
    model = open_model()
    trained(model, FAST)
    two = [s for s in samples() if s.label != "warm"]
    report, adapter = trained(model, FAST, data=two, restart=True)
    assert report.labels == ("bright", "quiet")
    _, fresh = trained(open_model(store="fresh"), FAST, data=two)
    assert_close(adapter, fresh, 0.0)


def test_other_settings_for_an_existing_adapter_are_named(open_model):
    model = open_model()
    trained(model, FAST, lora=LoraConfig(r=4))
    with pytest.raises(ConfigError, match=r"r 4 against 8.*--restart"):
        trained(model, FAST, lora=LoraConfig(r=8))
    assert trained(model, FAST)[1].config.r == 4


def test_an_adapter_without_a_head_is_given_one(open_model):
    """As PEFT's adapters of a bare backbone come: their points are trained further under a new head."""
    model = open_model()
    _, adapter = trained(model, FAST, "whole")
    points = {n: t for n, t in adapter.tensors.items() if ".lora_" in n}
    bare = replace(
        adapter, tensors=points, labels=None, training={}, config=replace(adapter.config, modules_to_save=None)
    )
    model.store.save("bare", bare)
    with pytest.raises(ConfigError, match="no head"):
        model.predict(["make it warm"], "bare")
    with pytest.raises(ConfigError, match="no head"):
        evaluate(model.bundle, bare, objective_for(model, samples(), ("bright", "quiet", "warm"), FAST))
    _, after = trained(model, FAST, "bare")
    assert after.labels == ("bright", "quiet", "warm")
    assert after.config.modules_to_save == adapter.config.modules_to_save
    assert set(after.tensors) == set(adapter.tensors)
    assert model.predict(["make the room warm"], "bare") == ["warm"]


def test_a_head_without_names_is_not_trained_further(open_model):
    model = open_model()
    _, adapter = trained(model, FAST)
    model.store.save("a", replace(adapter, labels=None, training={}))
    with pytest.raises(ConfigError, match=r"names.*--restart"):
        trained(model, FAST)


def test_one_class_is_refused_and_the_second_makes_it_possible(open_model):
    model = open_model()
    warm = [s for s in samples() if s.label == "warm"]
    with pytest.raises(ConfigError, match="warm"):
        trained(model, FAST, data=warm)
    trained(model, FAST)
    assert trained(model, FAST, data=warm)[0].labels == ("bright", "quiet", "warm")


def test_training_the_head_alone(open_model):
    model = open_model()
    config = TrainingConfig(num_train_epochs=20, learning_rate=0.05)
    report, adapter = trained(model, config, lora=LoraConfig(target_modules=()))
    assert adapter.points == ()
    assert report.history[-1]["train_loss"] < 0.8 * report.history[0]["train_loss"]


def test_a_head_alone_is_given_points_beside_it(open_model):
    """Head first, then LoRA: the second run begins with what the head alone says, and new classes may come too."""
    model = open_model()
    slow = TrainingConfig(num_train_epochs=1, batch_size=24, learning_rate=1e-6)
    _, head = trained(model, FAST, lora=LoraConfig(target_modules=()))
    lora = LoraConfig(r=2)
    with pytest.raises(ConfigError, match="no_such"):
        trained(model, FAST, lora=LoraConfig(target_modules=("no_such",)))
    seen: list[float] = []
    report, both = trained(model, slow, lora=lora, callback=lambda step, _progress: seen.append(step.loss))
    objective = objective_for(model, samples(), head.labels, FAST)
    assert seen[0] == pytest.approx(evaluate(model.bundle, head, objective)["loss"], abs=1e-5)
    assert report.version == 2 and both.config.r == 2 and len(both.points) == len(model.bundle.manifest.points)
    for name, values in head.tensors.items():
        np.testing.assert_allclose(both.tensors[name], values, atol=1e-5)
    assert any(both.tensors[name].any() for name in both.tensors if name.endswith("lora_B"))
    assert trained(model, slow, lora=lora)[0].already_done
    with pytest.raises(ConfigError, match=r"r 2 against 4.*--restart"):
        trained(model, slow, lora=LoraConfig(r=4))
    with pytest.raises(ConfigError, match=r"target_modules.*--restart"):
        trained(model, slow, lora=LoraConfig(r=2, target_modules=()))


def test_new_classes_and_points_come_together(open_model):
    model = open_model()
    two = [s for s in samples() if s.label != "warm"]
    _, head = trained(model, FAST, data=two, lora=LoraConfig(target_modules=()))
    _, both = trained(model, replace(FAST, num_train_epochs=8), lora=LoraConfig(r=2))
    assert head.labels == ("bright", "quiet") and both.labels == ("bright", "quiet", "warm")
    accuracy = np.mean(np.array(model.predict([s.text for s in samples()], "a")) == [s.label for s in samples()])
    assert accuracy > 0.9
