"""Training end to end on a tiny real base: exact micro-batches, early stopping, every task, threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from edgelora import LoraConfig, TrainingConfig, evaluate, train
from edgelora.adapter import new_adapter, to_files
from edgelora.data import NumberSample, PairSample, Sample, TextSample, TokenSample
from edgelora.errors import ConfigError, DataError, StoreError, TrainingError
from edgelora.runtime import Model
from edgelora.session import SessionSettings
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora.training_run import fit
from tests.device import tiny

FAST = TrainingConfig(num_train_epochs=4, batch_size=8, learning_rate=2e-2)


def samples(count: int = 24) -> list[TextSample]:
    return [TextSample(row["text"], row["label"]) for row in tiny.commands(count)]


def trained(model, config: TrainingConfig, name: str = "a", lora: LoraConfig | None = None, data=None, **options):
    report = train(model, name, samples() if data is None else data, lora=lora, config=config, **options)
    return report, model.store.load(name)


def assert_close(ours, theirs, tolerance: float):
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        np.testing.assert_allclose(tensor, theirs.tensors[name], rtol=tolerance, atol=tolerance, err_msg=name)


def differs(ours, theirs) -> bool:
    return any(not np.array_equal(tensor, theirs.tensors[name]) for name, tensor in ours.tensors.items())


# --- the step ---------------------------------------------------------------------------------------------


def test_the_gradient_of_a_step_is_torchs(base, open_model):
    """Mean pooling, a fresh head and cross-entropy, written down in torch, over a batch with padding."""
    model = open_model()
    classes, config = ("bright", "quiet", "warm"), LoraConfig(r=4, lora_alpha=8)
    adapter = new_adapter(model.bundle.manifest, config, classes)
    rng = np.random.default_rng(5)
    adapter = adapter.with_tensors(
        {n: t + rng.normal(0, 0.1, t.shape).astype("f4") for n, t in adapter.tensors.items()}
    )
    data = samples()
    trainer = Trainer(model.bundle, adapter, objective_for(model, data, adapter.labels, FAST), FAST)
    rows = np.arange(5, 15)
    loss = trainer.accumulate(rows)
    ours = trainer.gradients()

    leaves = {n: torch.from_numpy(t.copy()).requires_grad_() for n, t in adapter.tensors.items()}
    modules = dict(base.named_modules())

    def added(point: str):
        def hook(_module, inputs, output):
            a, b = leaves[f"{point}.lora_A"], leaves[f"{point}.lora_B"]
            return output + config.scale(point) * inputs[0] @ a @ b

        return hook

    handles = [modules[point].register_forward_hook(added(point)) for point in adapter.points]
    feeds = {n: torch.from_numpy(x) for n, x in model.encode([data[i].text for i in rows]).items()}
    hidden = base(**feeds).last_hidden_state
    for handle in handles:
        handle.remove()
    mask = feeds["attention_mask"][..., None].float()
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    head = model.bundle.manifest.head
    assert head is not None
    logits = pooled @ leaves[head.weight].T + leaves[head.bias]
    labels = torch.tensor([classes.index(data[i].label) for i in rows])
    theirs = torch.nn.functional.cross_entropy(logits, labels)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        wanted = leaf.grad.numpy()
        assert np.linalg.norm(ours[name] - wanted) <= 1e-4 * np.linalg.norm(wanted), name


@pytest.mark.parametrize("micro", [1, 3, 8])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_micro_batches_give_the_adapter_of_the_whole_batch(open_model, micro: int, class_weight: str | None):
    data = samples(20) + samples(3)[:1] * 4  # 'warm' is frequent, so that weights matter
    whole = {
        "batch_size": 8,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "num_train_epochs": 3,
        "class_weight": class_weight,
    }
    _, one = trained(open_model(store="one"), TrainingConfig(**whole), data=data)
    _, parts = trained(open_model(store="parts"), TrainingConfig(**whole, micro_batch_size=micro), data=data)
    assert_close(one, parts, 1e-5)


def test_micro_batches_of_token_labels_give_the_adapter_of_the_whole_batch(open_model):
    """The parts hold different numbers of labels, so a mean of means would be wrong."""
    whole: dict[str, Any] = {"batch_size": 6, "learning_rate": 1e-2, "optim": "sgd", "num_train_epochs": 3}
    _, one = trained(open_model("token-classification", "one"), TrainingConfig(**whole), data=tagged())
    parts = TrainingConfig(**whole, micro_batch_size=2)
    assert_close(one, trained(open_model("token-classification", "parts"), parts, data=tagged())[1], 1e-5)


def test_micro_batches_are_the_batch_cut_by_length(open_model):
    model = open_model()
    data = samples()
    adapter = new_adapter(model.bundle.manifest, LoraConfig(target_modules=tiny.TARGETS), labels=tuple(tiny.COMMANDS))
    objective = objective_for(model, data, tuple(tiny.COMMANDS), FAST)
    rows = np.random.default_rng(0).permutation(len(data))
    parts = Trainer(model.bundle, adapter, objective, replace(FAST, micro_batch_size=10)).micro_batches(rows)
    assert [len(part) for part in parts] == [10, 10, 4]
    assert sorted(np.concatenate(parts)) == sorted(rows)
    lengths = objective.lengths()[np.concatenate(parts)]
    assert (np.diff(lengths) >= 0).all()
    (whole,) = Trainer(model.bundle, adapter, objective, FAST).micro_batches(rows)
    assert whole is rows


def test_cores_that_share_a_batch_give_its_gradients(open_model, tmp_path):
    """On one core the batch is one run of the graph, on three it is three at once."""
    gradients, losses = [], []
    for cores in (1, 3):
        model = Model.open(open_model().bundle.path, tmp_path, SessionSettings(threads=cores))
        adapter = new_adapter(model.bundle.manifest, LoraConfig(r=4, lora_alpha=8), ("bright", "quiet", "warm"))
        rng = np.random.default_rng(5)
        adapter = adapter.with_tensors(
            {n: t + rng.normal(0, 0.1, t.shape).astype("f4") for n, t in adapter.tensors.items()}
        )
        trainer = Trainer(model.bundle, adapter, objective_for(model, samples(), adapter.labels, FAST), FAST)
        losses.append(trainer.accumulate(np.arange(11)))
        gradients.append(trainer.gradients())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for name, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, err_msg=name)


def test_contrastive_micro_batches_are_refused(open_model):
    """Every other sample of a batch is a negative: parts would be another loss, not the same one in less memory."""
    with pytest.raises(ConfigError, match="micro_batch_size"):
        trained(open_model("sentence-embedding"), TrainingConfig(micro_batch_size=2), data=pairs())


def test_class_weights_raise_the_rare_class(open_model):
    of_class = {name: [s for s in samples(36) if s.label == name] for name in tiny.COMMANDS}
    data = [*of_class["warm"], *of_class["bright"], of_class["quiet"][0]]
    model = open_model()
    settings: dict[str, Any] = {"num_train_epochs": 4, "batch_size": 8, "learning_rate": 5e-3}
    trained(model, TrainingConfig(**settings), "plain", data=data)
    trained(model, TrainingConfig(**settings, class_weight="balanced"), "weighed", data=data)
    text, column = [s.text for s in data], model.labels("plain").index("quiet")
    plain, weighed = (model.predict_proba(text, n)[:, column].mean() for n in ("plain", "weighed"))
    assert weighed > 1.2 * plain


def test_the_first_loss_is_that_of_chance(open_model):
    seen: list[float] = []
    trained(open_model(), FAST, callback=lambda step, _progress: seen.append(step.loss))
    assert seen[0] == pytest.approx(np.log(3), abs=0.2)
    assert seen[-1] < 0.8 * seen[0]


def test_weight_decay_momentum_clipping_and_schedule_change_the_result(open_model):
    """Each setting reaches the optimizer."""
    base: dict[str, Any] = {"num_train_epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "optim": "sgd"}
    _, plain = trained(open_model(), TrainingConfig(**base), "plain")
    changes: tuple[dict[str, Any], ...] = (
        {"weight_decay": 0.1},
        {"momentum": 0.0},
        {"max_grad_norm": 0.01},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "cosine"},
        {"warmup_steps": 3},
        {"warmup_ratio": 0.5},
        {"group_by_length": False},
        {"seed": 1},
        {"optim": "adamw"},
    )
    for setting in changes:
        _, other = trained(open_model(), TrainingConfig(**base | setting), "-".join(map(str, setting)))
        assert differs(plain, other), setting


def test_max_steps_ends_training(open_model):
    report, _ = trained(open_model(), TrainingConfig(max_steps=5, batch_size=8))
    assert report.steps == 5
    assert len(report.history) == 2


# --- dropout ----------------------------------------------------------------------------------------------


def test_lora_dropout_is_deterministic_and_does_something(open_model):
    plain, dropped = LoraConfig(r=4, lora_alpha=8), LoraConfig(r=4, lora_alpha=8, lora_dropout=0.4)
    _, off = trained(open_model(store="off"), FAST, lora=plain)
    reports = [trained(open_model(store=f"on{i}"), FAST, lora=dropped) for i in range(2)]
    assert to_files(reports[0][1]) == to_files(reports[1][1])
    assert differs(off, reports[0][1])
    history = reports[0][0].history
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_lora_dropout_keeps_the_expected_gradient(open_model):
    """Inverted dropout: over many masks the mean gradient at B = 0 is the gradient without dropout."""
    model = open_model()
    gradients = []
    for rate in (0.0, 0.3):
        lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=rate)
        adapter = new_adapter(model.bundle.manifest, lora, ("bright", "quiet", "warm"))
        trainer = Trainer(model.bundle, adapter, objective_for(model, samples(), adapter.labels, FAST), FAST)
        total: dict[str, Any] = {}
        for step in range(200 if rate else 1):
            trainer.step_number = step  # the masks are drawn from the step
            trainer.accumulate(np.arange(24))
            for name, g in trainer.gradients().items():
                total[name] = total.get(name, 0) + g / (200 if rate else 1)
        gradients.append(total)
    for name in gradients[0]:
        if name.endswith("lora_B"):
            off, on = gradients[0][name], gradients[1][name]
            assert np.linalg.norm(on - off) < 0.12 * np.linalg.norm(off), name


def test_predictions_use_no_dropout(open_model):
    model = open_model()
    trained(model, FAST, lora=LoraConfig(r=4, lora_dropout=0.5))
    text = [s.text for s in samples()]
    assert np.array_equal(model.predict_proba(text, "a"), model.predict_proba(text, "a"))


# --- validation and early stopping -----------------------------------------------------------------------


def relabelled(data: list[TextSample], names: dict[str, str]) -> list[TextSample]:
    return [TextSample(s.text, names[s.label]) for s in data]


# Held-out samples, two labels of which are swapped: the better the training, the worse their accuracy.
CONTRARY = relabelled(samples(24)[::2], {"warm": "warm", "quiet": "bright", "bright": "quiet"})
STEADY: dict[str, Any] = {"batch_size": 4, "learning_rate": 5e-3, "lr_scheduler_type": "constant"}


def test_the_best_epoch_is_kept(open_model):
    model = open_model()
    config = TrainingConfig(**STEADY, num_train_epochs=4)
    report, adapter = trained(model, config, validation=CONTRARY)
    accuracies = [entry["eval_accuracy"] for entry in report.history]
    assert max(accuracies) > accuracies[-1], "the test needs a best epoch before the last"
    assert report.best_epoch is not None
    assert report.best_epoch == int(np.argmax(accuracies)) + 1
    measured = evaluate(model.bundle, adapter, objective_for(model, CONTRARY, adapter.labels, config))
    assert measured["accuracy"] == pytest.approx(max(accuracies))
    assert measured["loss"] == pytest.approx(report.history[report.best_epoch - 1]["eval_loss"], rel=1e-4)


def test_the_last_epoch_is_kept_on_demand(open_model):
    _, alone = trained(open_model(), TrainingConfig(**STEADY, num_train_epochs=4), "alone")
    config = TrainingConfig(**STEADY, num_train_epochs=4, load_best_model_at_end=False)
    report, last = trained(open_model(), config, "last", validation=CONTRARY)
    assert report.best_epoch != len(report.history), "the test needs a best epoch before the last"
    assert_close(alone, last, 0.0)


def test_early_stopping_counts_epochs_without_a_better_validation(open_model):
    config = TrainingConfig(**STEADY, num_train_epochs=40, early_stopping_patience=3)
    report, _ = trained(open_model(), config, validation=CONTRARY)
    assert report.stopped_early
    assert report.best_epoch is not None
    assert len(report.history) == report.best_epoch + 3
    accuracies = [entry["eval_accuracy"] for entry in report.history]
    assert max(accuracies[report.best_epoch :]) <= accuracies[report.best_epoch - 1]


def test_patience_without_validation_is_refused(open_model):
    with pytest.raises(ConfigError, match="validation"):
        trained(open_model(), TrainingConfig(early_stopping_patience=2))


def test_a_validation_label_that_was_not_trained_is_named(open_model):
    with pytest.raises(DataError, match="freezing"):
        trained(open_model(), FAST, validation=[TextSample("the hall", "freezing")])


# --- other tasks ------------------------------------------------------------------------------------------


def numbered() -> list[NumberSample]:
    """How warm, by the words."""
    degrees = {"warm": (1.0,), "bright": (0.0,), "quiet": (-1.0,)}
    return [NumberSample(row["text"], degrees[row["label"]]) for row in tiny.commands()]


def tagged() -> list[TokenSample]:
    things, rows = {"room", "light", "music", "kitchen", "hall"}, []
    for row in tiny.commands():
        words = row["text"].split()
        rows.append(TokenSample(tuple(words), tuple("THING" if w in things else "O" for w in words)))
    return rows


def pairs(negative: bool = False) -> list[PairSample]:
    rows, data = tiny.commands(), []
    for i, row in enumerate(rows):
        other, far = rows[(i + 3) % len(rows)]["text"], rows[(i + 1) % len(rows)]["text"]
        data.append(PairSample(row["text"], other, far if negative else None))
    return data


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


# --- further, again, restart ------------------------------------------------------------------------------


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


# --- divergence and interruption -------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_diverging_loss_is_an_error_and_nothing_saved_is_lost(open_model, optim: str):
    model = open_model()
    _, before = trained(model, FAST)
    wild = TrainingConfig(
        num_train_epochs=50, batch_size=8, learning_rate=1e30, optim=optim, max_grad_norm=0, save_steps=1
    )
    with pytest.raises(TrainingError, match=r"diverged at step \d+.*learning rate"):
        trained(model, wild, again=True)
    assert to_files(model.store.load("a")) == to_files(before)
    assert model.store.current_version("a") == 1
    for path in model.store.state_path("a").glob("*.safetensors"):
        from safetensors.numpy import load_file

        assert np.isfinite(load_file(path)["current"]).all(), "what is kept can be continued"
    assert trained(model, FAST, data=samples(12), restart=True)[0].version == 2


class Stop(Exception):
    """As if the process died."""


def stopping_at(step: int):
    def callback(result, _progress):
        if result.step == step:
            raise Stop

    return callback


@pytest.mark.parametrize("stop", [1, 2, 5, 6, 11, 12])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_continuing_gives_the_bytes_of_an_uninterrupted_run(open_model, stop: int, optim: str):
    """With validation and dropout: the state must hold the best epoch, the histories and the optimizer's moments."""
    config = TrainingConfig(num_train_epochs=4, batch_size=8, learning_rate=2e-2, optim=optim, save_steps=2)
    lora = LoraConfig(r=4, lora_dropout=0.2)
    held_out = samples()[::3]
    _, whole = trained(open_model(store="whole"), config, lora=lora, validation=held_out)
    with pytest.raises(Stop):
        trained(open_model(), config, lora=lora, validation=held_out, callback=stopping_at(stop))
    report, continued = trained(open_model(), config, lora=lora, validation=held_out)
    assert report.resumed_at == (stop if stop % 3 == 0 else stop - stop % 2)
    assert to_files(continued) == to_files(whole)
    assert not list(open_model().store.state_path("a").glob("*"))


def test_an_unfinished_run_with_other_data_is_refused_and_can_be_finished(open_model):
    config = TrainingConfig(num_train_epochs=4, batch_size=8, save_steps=1)
    with pytest.raises(Stop):
        trained(open_model(), config, callback=stopping_at(5))
    with pytest.raises(TrainingError, match=r"step 5.*--discard"):
        trained(open_model(), config, data=samples(12))
    assert trained(open_model(), config)[0].resumed_at == 5


def test_restart_continues_its_own_unfinished_run(open_model):
    """The same command continues, also where the command says --restart."""
    config = TrainingConfig(num_train_epochs=4, batch_size=8, save_steps=1)
    trained(open_model(), FAST, data=samples(12))
    with pytest.raises(Stop):
        trained(open_model(), config, restart=True, callback=stopping_at(5))
    report, adapter = trained(open_model(), config, restart=True)
    assert report.resumed_at == 5
    assert_close(adapter, trained(open_model(store="fresh"), config)[1], 0.0)


def test_what_cannot_be_finished_is_dropped_and_the_versions_stay(open_model):
    """After a divergence, a gentler rate trains on from the last version, not from a fresh adapter."""
    model = open_model()
    _, before = trained(model, FAST)
    wild = TrainingConfig(
        num_train_epochs=9, batch_size=8, learning_rate=1e30, max_grad_norm=0, optim="sgd", save_steps=1
    )
    with pytest.raises(TrainingError, match="diverged"):
        trained(model, wild)
    gentle = TrainingConfig(num_train_epochs=1, batch_size=8, learning_rate=1e-6)
    with pytest.raises(TrainingError, match="--discard"):
        trained(model, gentle)
    report, after = trained(model, gentle, discard=True)
    assert (report.version, report.resumed_at) == (2, 0)
    assert_close(before, after, 1e-4)


def test_restart_discards_another_run_and_a_damaged_state(open_model):
    config = TrainingConfig(num_train_epochs=2, batch_size=8, save_steps=1)
    with pytest.raises(Stop):
        trained(open_model(), config, callback=stopping_at(2))
    assert trained(open_model(), config, data=samples(12), restart=True)[0].resumed_at == 0
    with pytest.raises(Stop):
        trained(open_model(), config, callback=stopping_at(2))
    (state,) = open_model().store.state_path("a").iterdir()
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(TrainingError, match="damaged"):
        trained(open_model(), config)
    assert trained(open_model(), config, restart=True)[0].resumed_at == 0


def test_a_kill_between_publishing_and_tidying_leaves_no_trap(open_model):
    """The state of a run that is finished is not an unfinished run."""
    config = TrainingConfig(num_train_epochs=2, batch_size=8, save_steps=1)
    model = open_model()
    objective_labels = ("bright", "quiet", "warm")
    states: list[bytes] = []
    folder = model.store.state_path("a")

    def remember(_step, _progress):
        states.append((folder / "state.safetensors").read_bytes())

    trained(model, config, callback=remember)
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(states[-1])  # as if the kill came before it was removed
    assert trained(open_model(), config)[0].already_done
    assert trained(open_model(), config, data=samples(12))[0].labels == objective_labels


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
def test_a_truncated_state_is_named(open_model, cut: int):
    config = TrainingConfig(num_train_epochs=2, batch_size=8, save_steps=1)
    with pytest.raises(Stop):
        trained(open_model(), config, callback=stopping_at(2))
    (path,) = open_model().store.state_path("a").iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TrainingError, match=r"state\.safetensors.*damaged.*--discard"):
        trained(open_model(), config)


def test_fit_without_a_folder_writes_nothing(open_model, tmp_path):
    model = open_model()
    adapter = new_adapter(model.bundle.manifest, LoraConfig(), ("bright", "quiet", "warm"))
    trainer = Trainer(model.bundle, adapter, objective_for(model, samples(), adapter.labels, FAST), FAST)
    result = fit(trainer)
    assert result.progress.step == 12
    assert not (tmp_path / "store").exists()


# --- several at once --------------------------------------------------------------------------------------


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
