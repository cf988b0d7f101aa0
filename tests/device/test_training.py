"""A step, its settings, dropout, and which epoch is kept, on a tiny real base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgelora import LoraConfig, TrainingConfig, evaluate
from edgelora.adapter import new_adapter, to_files
from edgelora.bundle import Bundle
from edgelora.data import TextSample
from edgelora.errors import ConfigError, DataError
from edgelora.runtime import Model
from edgelora.session import SessionSettings
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from tests.device import tiny
from tests.device.learning import FAST, assert_close, differs, pairs, relabelled, samples, tagged, trained
from tests.device.spoil import edit_manifest

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


# --- what is told -----------------------------------------------------------------------------------------


def test_points_that_no_gradient_reached_are_told(damaged: Path, tmp_path: Path):
    """Of those that a check named, the adapter's own."""
    first, second, *others = [point.id for point in Bundle.open(damaged).manifest.points]
    edit_manifest(verification={"unreached": [first, others[-1]]})(damaged)
    model = Model.open(damaged, tmp_path / "store")
    told = {
        name: trained(model, replace(FAST, max_steps=1), name, LoraConfig(r=2, target_modules=points))[0].notes
        for name, points in {"a": (first, second), "b": (second,)}.items()
    }
    assert told["b"] == ()
    assert len(told["a"]) == 1 and f"no gradient reached {first} when" in told["a"][0]
