"""Pictures from the files to a prediction: training that survives a kill, augmentation, an adapter per row, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgelora import ConfigError, DataError, Gate, LoraConfig, Model, TrainingConfig, read_samples, train
from edgelora.adapter import new_adapter, to_files
from edgelora.check import check
from edgelora.media.image_inputs import ImageInputs
from edgelora.objectives import is_augmented
from edgelora.prefix_cache import PrefixCache
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from tests.device import pictures, tiny
from tests.device.test_kill import version, wait_for

SETTINGS = TrainingConfig(num_train_epochs=15, batch_size=12, learning_rate=2e-2)
LORA = LoraConfig(r=4, lora_alpha=8)
ALL = ("flip", "crop", "color")


@pytest.fixture(scope="session")
def base() -> Any:
    return pictures.network()


@pytest.fixture(scope="session")
def bundle(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.write_bundle(base, tmp_path_factory.mktemp("image") / "shapes.edgelora", train_last=(1,))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.write_folder(tmp_path_factory.mktemp("train"), 60)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.write_folder(tmp_path_factory.mktemp("test"), 30, seed=1)


@pytest.fixture
def model(bundle: Path, tmp_path: Path) -> Model:
    return Model.open(bundle, tmp_path / "store")


def test_the_bundle_is_checked(bundle: Path):
    manifest = Model.open(bundle).bundle.manifest
    assert manifest.preprocessing["kind"] == "image" and manifest.preprocessing["size"] == [24, 24]
    assert manifest.head is not None and manifest.head.features == 16
    assert check(Model.open(bundle).bundle).passed


def test_pictures_are_learned_and_told(model: Model, folder: Path, other: Path):
    samples, held_out = read_samples(folder, pictures.TASK), read_samples(other, pictures.TASK)
    report = train(model, "ann", samples, held_out, LORA, SETTINGS, gate=Gate(held_out))
    assert report.gate is not None and report.gate.accepted and report.labels == pictures.LABELS
    assert report.best_epoch is not None and report.gate.new > max(0.75, report.gate.base + 0.3)
    files = sorted(other.rglob("*.png"))
    told = model.predict(files, adapter="ann")
    truth = [file.parent.name for file in files]
    assert (
        np.mean([a == b for a, b in zip(told, truth, strict=True)])
        == report.history[report.best_epoch - 1]["eval_accuracy"]
    )
    from PIL import Image

    arrays = [np.asarray(Image.open(file)) for file in files]
    assert model.predict(arrays, adapter="ann") == told
    assert model.predict([file.read_bytes() for file in files[:3]], adapter="ann") == told[:3]
    proba = model.predict_proba([str(file) for file in files], adapter="ann")
    assert [pictures.LABELS[i] for i in proba.argmax(1)] == told
    assert model.predict([], adapter="ann") == []


def test_the_gradient_of_a_step_is_torchs(base: Any, model: Model, folder: Path):
    """Of the same pixels, cross-entropy on mean features: the head's gradient, and A and B by PEFT's formula."""
    samples = read_samples(folder, pictures.TASK)
    adapter = new_adapter(model.bundle.manifest, LORA, pictures.LABELS, rng=np.random.default_rng(0))
    adapter = adapter.with_tensors(
        {n: t + np.random.default_rng(1).normal(0, 0.1, t.shape).astype(np.float32) for n, t in adapter.tensors.items()}
    )
    trainer = Trainer(model.bundle, adapter, objective_for(model, samples, pictures.LABELS, SETTINGS), SETTINGS)
    rows = np.arange(0, 36, 3)
    loss = trainer.accumulate(rows)
    x = torch.from_numpy(np.asarray(trainer.objective.inputs(rows)["image"]))
    y = torch.tensor([pictures.LABELS.index(samples[i].labels[0]) for i in rows])
    tensors = {name: torch.from_numpy(t.copy()).requires_grad_() for name, t in adapter.tensors.items()}
    layers = dict(base.named_modules())
    scale = LORA.lora_alpha / LORA.r

    def adapted(point: str, layer: Any) -> Any:
        def hook(_module: Any, inputs: Any, output: Any) -> Any:
            low = torch.nn.functional.conv2d(inputs[0], tensors[f"{point}.lora_A"], None, layer.stride, layer.padding)
            return output + scale * torch.nn.functional.conv2d(low, tensors[f"{point}.lora_B"])

        return layer.register_forward_hook(hook)

    hooks = [adapted(point.id, layers[point.id]) for point in model.bundle.manifest.points]
    features = base(x).mean((2, 3))
    logits = features @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    expected = torch.nn.functional.cross_entropy(logits, y)
    expected.backward()
    for hook in hooks:
        hook.remove()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in trainer.gradients().items():
        wanted = tensors[name].grad
        assert wanted is not None
        np.testing.assert_allclose(gradient, wanted.numpy(), atol=1e-4 * wanted.abs().max().item(), err_msg=name)


def test_augmented_epochs_differ_and_evaluation_does_not(model: Model, folder: Path):
    samples, rows = read_samples(folder, pictures.TASK), np.arange(6)
    config = TrainingConfig(augment=ALL)
    one, two = (objective_for(model, samples, pictures.LABELS, config) for _ in range(2))
    plain = objective_for(model, samples, pictures.LABELS, TrainingConfig())
    assert is_augmented(one) and not is_augmented(plain)
    as_they_are = plain.inputs(rows)["image"]
    np.testing.assert_array_equal(one.inputs(rows)["image"], as_they_are)
    first, second = one.of_epoch(0).inputs(rows)["image"], one.of_epoch(1).inputs(rows)["image"]
    assert not np.array_equal(first, as_they_are) and not np.array_equal(first, second)
    np.testing.assert_array_equal(two.of_epoch(1).inputs(rows[::-1])["image"][::-1], second)


def test_the_prefix_keeps_what_is_the_same_each_epoch_alone(model: Model, folder: Path):
    """From the cache the whole model's result comes out, and with augmentation too, where nothing may be kept."""
    samples = read_samples(folder, pictures.TASK)
    for augment in ((), ALL):
        made = {}
        for cache in ("memory", None):
            config = TrainingConfig(num_train_epochs=3, batch_size=12, train_last=1, cache=cache, augment=augment)
            report = train(model, f"{cache}-{len(augment)}", samples, None, LORA, config)
            made[cache] = model.store.load(f"{cache}-{len(augment)}").tensors
            said = [note for note in report.notes if "ran at every step" in note]
            assert len(said) == (1 if augment and cache else 0)
        for name, tensor in made["memory"].items():
            np.testing.assert_allclose(tensor, made[None][name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_pictures_whose_values_are_kept_are_not_read_again(
    model: Model, folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither to train nor to evaluate, and the adapter is that of pictures which are."""
    samples, held_out = read_samples(folder, pictures.TASK), read_samples(other, pictures.TASK)
    config = TrainingConfig(num_train_epochs=2, batch_size=12, train_last=1, cache="memory", optim="sgd")
    lora = replace(LORA, target_modules=model.bundle.manifest.prefixes[0].points)
    adapter = new_adapter(model.bundle.manifest, lora, pictures.LABELS)
    read = ImageInputs.feeds
    counts: list[int] = []
    found: list[dict[str, Any]] = []
    for suffices in (True, False):
        if not suffices:
            monkeypatch.setattr(PrefixCache, "suffices", lambda *_: False)
        training, validation = (objective_for(model, one, pictures.LABELS, config) for one in (samples, held_out))
        trainer = Trainer(model.bundle, adapter, training, config)
        trainer.step(np.arange(12))
        metrics = trainer.evaluate(validation)
        asked: list[int] = []
        monkeypatch.setattr(ImageInputs, "feeds", lambda self, rows: (asked.append(len(rows)), read(self, rows))[1])  # noqa: B023
        losses = [trainer.step(np.arange(12, 24)).loss, trainer.step(np.arange(60)[::7]).loss]
        assert trainer.evaluate(validation).keys() == metrics.keys()
        counts.append(sum(asked))
        found.append({**trainer.gradients(), **trainer.evaluate(validation), "losses": np.asarray(losses)})
        monkeypatch.setattr(ImageInputs, "feeds", read)
    assert counts[0] == 0 and counts[1] > 0
    for name, value in found[0].items():
        np.testing.assert_array_equal(value, found[1][name], err_msg=name)


def test_where_a_picture_lies_is_known_without_reading_it_again(model: Model, folder: Path, tmp_path: Path):
    """However many pictures there are, of which few are kept."""
    file = shutil.copy(folder / "disc" / "000.png", tmp_path / "a.png")
    assert model.encoder is not None
    inputs = model.encoder.inputs([file, folder / "level" / "001.png"])
    assert isinstance(inputs, ImageInputs)
    inputs.examine()
    wanted = inputs.placement(0)
    inputs._kept = type(inputs._kept)()
    Path(file).unlink()
    assert inputs.placement(0) == wanted


def test_unknown_augmentations_are_refused(model: Model, folder: Path):
    with pytest.raises(ConfigError, match="image-classification has no augmentation spin; it has flip, crop, color"):
        train(model, "a", read_samples(folder, pictures.TASK), config=TrainingConfig(augment=("spin",)))


def test_broken_pictures_are_named_before_anything_changes(model: Model, folder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    files = sorted(copy.rglob("*.png"))
    for file in files[:7]:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError) as caught:
        train(model, "ann", read_samples(copy, pictures.TASK), lora=LORA, config=SETTINGS)
    lines = str(caught.value).splitlines()
    assert [str(file) in line for file, line in zip(files, lines, strict=False)] == [True] * 5 + [False]
    assert lines[5] == "and 2 more pictures that cannot be read"
    assert not model.store.exists("ann") and not model.store.state_path("ann").exists()


def test_other_inputs_are_refused(model: Model):
    with pytest.raises(DataError, match="put the one in a list"):
        model.predict("picture.png")
    with pytest.raises(DataError, match=r"pictures are paths, bytes or uint8 arrays; 3 is none"):
        model.predict([3])
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        model.predict(["none.png"], adapter=new_adapter(model.bundle.manifest, LORA, ("a", "b")))


@pytest.fixture
def run(bundle: Path, tmp_path: Path) -> Callable[..., Any]:
    def command(verb: str, *arguments: str | Path, status: int = 0) -> Any:
        process = tiny.start(verb, bundle, "--store", tmp_path / "store", *arguments, "--json")
        out, err = process.communicate(timeout=120)
        assert process.returncode == status and "Traceback" not in err, err
        return json.loads(out) if status == 0 else err

    return command


def test_the_commands(run: Callable[..., Any], folder: Path, other: Path, tmp_path: Path):
    how = ("--epochs", "12", "--batch-size", "12", "--lr", "0.02", "--rank", "4")
    report = run("train", "--adapter", "ann", "--data", folder, *how, "--validation-split", "0.2")
    assert report["labels"] == list(pictures.LABELS)
    run("train", "--adapter", "bob", "--data", folder, *how, "--seed", "3", "--augment", *ALL)
    measured = run("eval", "--adapter", "ann", "--data", other)
    assert measured["samples"] == 30 and measured["accuracy"] > 0.6
    files = sorted(other.rglob("*.png"))
    rows = run("predict", "--adapter", "ann", files[0], other / "level")
    assert [row["image"] for row in rows] == [str(f) for f in (files[0], *sorted((other / "level").iterdir()))]
    assert set(rows[0]) == {"image", "label", "score"}
    each = run("predict", "--adapter", "ann", "--adapter", "bob", files[0], files[0])
    assert each[0] == {"adapter": "ann", **rows[0]} and each[1]["adapter"] == "bob"
    lines = [
        {"image": str(f.relative_to(other)), "label": f.parent.name, "adapter": ("ann", "bob")[i % 2]}
        for i, f in enumerate(files)
    ]
    table = tiny.write_jsonl(other / "people.jsonl", lines)
    mixed = run("predict", "--data", table)
    assert [row["adapter"] for row in mixed] == [line["adapter"] for line in lines]
    alone = run("predict", "--adapter", "ann", *files[::2])
    assert [(r["label"], r["score"]) for r in mixed[::2]] == [
        (r["label"], pytest.approx(r["score"], abs=2e-4)) for r in alone
    ]
    both = run("eval", "--data", table)
    assert both["samples"] == 30 and set(both["adapters"]) == {"ann", "bob"}
    assert "no such file or folder" in run("predict", "--adapter", "ann", tmp_path / "none.png", status=2)
    assert "holds no pictures" in run("train", "--adapter", "ann", "--data", tmp_path / "store" / "ann", status=2)


def test_a_killed_run_with_augmentation_ends_with_the_bytes_of_a_whole_one(bundle: Path, folder: Path, tmp_path: Path):
    def command(store: str):
        how = ("--epochs", "25", "--batch-size", "8", "--save-steps", "3", "--rank", "4", "--lora-dropout", "0.1")
        at = ("--adapter", "home", "--data", folder, "--store", tmp_path / store, "--validation-split", "0.2")
        return tiny.start("train", bundle, *at, *how, "--augment", *ALL)

    _, err = (whole := command("whole")).communicate(timeout=120)
    assert whole.returncode == 0, err
    state, kills = tmp_path / "killed" / "home" / "training" / "state.safetensors", 0
    for _ in range(3):
        process, seen = command("killed"), state.stat().st_mtime_ns if state.exists() else 0
        wait_for(lambda: state.exists() and state.stat().st_mtime_ns != seen, process)  # noqa: B023
        time.sleep(0.05 * kills)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= 2, "the run ended before it could be killed; make it longer"
    _, err = (last := command("killed")).communicate(timeout=120)
    assert last.returncode == 0, err
    assert "continuing at step" in err
    assert version(tmp_path / "killed") == version(tmp_path / "whole")


def test_two_runs_of_one_setting_are_the_same_adapter(model: Model, folder: Path):
    samples = read_samples(folder, pictures.TASK)
    config = TrainingConfig(num_train_epochs=2, batch_size=12, augment=ALL)
    made = []
    for name in ("a", "b"):
        train(model, name, samples, None, LORA, config)
        made.append(to_files(model.store.load(name)))
    assert made[0] == made[1]
