"""Masks and points from the files to what is drawn, learned and measured in the pictures' own pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

from edgelora import DataError, LoraConfig, Model, TrainingConfig, read_samples, train  # noqa: E402
from edgelora.bundle import Bundle  # noqa: E402
from edgelora.check import check  # noqa: E402
from edgelora.cli import main  # noqa: E402
from edgelora.cli.pictures import drawn_files  # noqa: E402
from edgelora.errors import ConfigError  # noqa: E402
from edgelora.tasks import objective_for, task_named  # noqa: E402
from edgelora.trainer import Trainer, evaluate  # noqa: E402
from edgelora.training_start import before_training  # noqa: E402
from edgelora.vision.masks import IGNORED  # noqa: E402
from edgelora.vision.runs import from_runs  # noqa: E402
from tests.device import pictures  # noqa: E402

MASKS, POINTS = "semantic-segmentation", "keypoint-detection"
TASKS = (MASKS, POINTS)
SETTINGS = TrainingConfig(num_train_epochs=12, batch_size=8, learning_rate=2e-2)
LORA = LoraConfig(r=4, lora_alpha=8)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> dict[str, Path]:
    base, folder = pictures.network(), tmp_path_factory.mktemp("dense")
    image = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "fit": "letterbox"}
    return {
        task: pictures.write_bundle(base, folder / f"{task}.edgelora", task, image=image) for task in (MASKS, POINTS)
    }


def read(data: Path, task: str) -> list[Any]:
    """The samples of a task, of its own kind."""
    return list(read_samples(data, task))


def write_discs(folder: Path, count: int, seed: int) -> Path:
    """Pictures of a bright disc on a dark ground, their masks, and where the disc's middle and its right end are."""
    rng = np.random.default_rng(seed)
    lines = ["image,name,x,y,visible"]
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    for number in range(count):
        width, height = (int(side) for side in rng.integers(36, 60, 2))
        radius = float(rng.uniform(8, 13))
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        rows, columns = np.mgrid[0:height, 0:width] + 0.5
        inside = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
        shades = np.where(inside[..., None], rng.integers(170, 250, 3), rng.integers(0, 80, 3))
        Image.fromarray((shades + rng.integers(0, 6, shades.shape)).astype(np.uint8)).save(
            folder / f"images/{number}.png"
        )
        Image.fromarray((inside * 255).astype(np.uint8)).save(folder / f"masks/{number}.png")
        lines.append(f"images/{number}.png,middle,{x:.2f},{y:.2f},1")
        lines.append(f"images/{number}.png,right,{x + 0.9 * radius:.2f},{y + 0.4 * radius:.2f},{int(number != 1)}")
    (folder / "points.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "classes.txt").write_text("ground\ndisc\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def discs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("discs")
    return write_discs(folder / "train", 32, 0), write_discs(folder / "test", 12, 1)


def data_of(task: str, folder: Path) -> Path:
    return folder if task == MASKS else folder / "points.csv"


def opened(bundles: dict[str, Path], task: str, folder: Path) -> Model:
    return Model.open(bundles[task], folder / "store")


@pytest.mark.parametrize("task", [MASKS, POINTS])
def test_the_bundles_are_checked(task, bundles):
    bundle = Model.open(bundles[task]).bundle
    size = (24, 24) if task == MASKS else (6, 6)
    assert bundle.manifest.outputs[0].shape == ("batch", "outputs", *size)
    assert check(bundle).passed


def test_masks_are_learned_and_told_in_the_pictures_pixels(bundles, discs, tmp_path):
    model = opened(bundles, MASKS, tmp_path)
    samples, held_out = (read(folder, MASKS) for folder in discs)
    before = before_training(model, "ann", samples, LORA, SETTINGS)
    poor = evaluate(model.bundle, before, objective_for(model, held_out, before.labels, SETTINGS))
    report = train(model, "ann", samples, held_out, LORA, SETTINGS)
    assert report.labels == ("ground", "disc")
    best = report.history[(report.best_epoch or 0) - 1]
    assert best["eval_mean_iou"] > max(0.75, poor["mean_iou"] + 0.2)
    files = [sample.path for sample in held_out]
    told = model.predict(files, adapter="ann")
    joined, parted = 0, 0
    for sample, mask in zip(held_out, told, strict=True):
        truth = np.asarray(Image.open(sample.mask)) == 255
        assert mask.shape == truth.shape
        joined, parted = joined + (truth & (mask == 1)).sum(), parted + (truth | (mask == 1)).sum()
    assert joined / parted == pytest.approx(best["eval_iou disc"], abs=1e-3)
    result = model.task.results(model, files[:3], "ann", None)[0]
    np.testing.assert_array_equal(from_runs(result["masks"]["disc"]), told[0] == 1)
    assert sum(result["classes"].values()) == pytest.approx(1, abs=1e-3)
    arrays = [np.asarray(Image.open(file)) for file in files[:2]]
    np.testing.assert_array_equal(model.predict(arrays, adapter="ann")[1], told[1])
    with pytest.raises(ConfigError, match="33 adapters for 32 rows"):
        model.predict([*files * 32][:32], adapters=["ann"] * 33)
    with pytest.raises(DataError, match="lies on a picture"):
        model.predict({"image": np.zeros((1, 3, 24, 24), np.float32)}, adapter="ann")


def test_a_bias_that_moves_no_loss_is_not_held_against_smaller_gradients(tmp_path):
    """Of a map of tiny numbers all other gradients are no longer than what float32 leaves of the bias's."""
    base = pictures.network()
    with torch.no_grad():
        for parameter in base.layers[-1][1].parameters():
            parameter.mul_(1e-5)
    bundle = Bundle.open(pictures.write_bundle(base, tmp_path / "b.edgelora", POINTS))
    (verdict,) = [graph for graph in check(bundle).graphs if graph.file == "train-heatmap.onnx"]
    assert verdict.passed and verdict.error < 1e-4


def oks_by_hand(samples: list[Any], told: Any, names: tuple[str, ...]) -> float:
    """The mean of exp(-d² / (2·area·(2σ)²)), with the area of the box around a picture's points, σ as COCO's mean."""
    boxes = [np.ptp([(p.x, p.y) for p in sample.points], axis=0).prod() for sample in samples]
    usual = np.mean([area for area in boxes if area])
    alike = []
    for sample, area, found in zip(samples, boxes, told, strict=True):
        gaps = [np.hypot(*(found[names.index(p.name)][:2] - (p.x, p.y))) for p in sample.points]
        spread = 2 * (area or usual) * (2 * 1.138 / 17) ** 2
        alike.append(np.mean([np.exp(-(gap**2) / spread) for gap in gaps]))
    return float(np.mean(alike))


def test_points_are_learned_and_told_in_the_pictures_pixels(bundles, discs, tmp_path):
    model = opened(bundles, POINTS, tmp_path)
    samples, held_out = (read(data_of(POINTS, folder), POINTS) for folder in discs)
    assert [len(s.points) for s in samples[:3]] == [2, 1, 2]
    report = train(model, "ann", samples, held_out, LORA, SETTINGS)
    names = ("middle", "right")
    assert report.labels == names
    best = report.history[(report.best_epoch or 0) - 1]
    assert best["eval_error_median"] < 5
    assert best["eval_pck@0.2"] <= 1
    told = model.predict([sample.path for sample in held_out], adapter="ann")
    gaps = [
        np.hypot(told[i][names.index(p.name)][0] - p.x, told[i][names.index(p.name)][1] - p.y)
        for i, sample in enumerate(held_out)
        for p in sample.points
    ]
    assert np.median(gaps) == pytest.approx(best["eval_error_median"], abs=0.05)
    assert oks_by_hand(held_out, told, names) == pytest.approx(best["eval_oks"], abs=0.01)
    (result,) = model.task.results(model, [held_out[0].path], "ann", None)
    assert set(result["points"]) == {"middle", "right"}
    assert 0 < result["points"]["middle"]["score"] <= 1


@pytest.mark.parametrize("task", [MASKS, POINTS])
def test_the_evaluations_loss_is_the_graphs(task, bundles, discs, tmp_path):
    model = opened(bundles, task, tmp_path)
    samples = read(data_of(task, discs[0]), task)[:7]
    settings = TrainingConfig(batch_size=7, class_weight="balanced" if task == MASKS else None, dice_weight=0.5)
    adapter = before_training(model, "ann", samples, LORA, settings)
    objective = objective_for(model, samples, adapter.labels, settings)
    trainer = Trainer(model.bundle, adapter, objective, settings)
    metrics = trainer.evaluate(objective)
    assert trainer.accumulate(np.arange(7)) == pytest.approx(metrics["loss"], rel=1e-4)


@pytest.mark.parametrize("task", [MASKS, POINTS])
def test_labels_follow_varied_pictures(task, bundles, discs, tmp_path):
    """Mirrored pictures have mirrored masks and points, these under the other side's names where pairs are given."""
    model = opened(bundles, task, tmp_path)
    samples = read(data_of(task, discs[0]), task)[:12]
    labels = ("ground", "disc") if task == MASKS else ("middle", "right")
    rows = np.arange(len(samples))
    plain = objective_for(model, samples, labels, TrainingConfig())
    varied: Any = objective_for(model, samples, labels, TrainingConfig(augment=("flip",))).of_epoch(3)
    pairs = TrainingConfig(augment=("flip",), flip_pairs=(("middle", "right"),))
    before, after = plain.feeds(rows, 1.0), varied.feeds(rows, 1.0)
    flipped = [varied.data.placement(row).scale[0] < 0 for row in rows]
    assert 0 < sum(flipped) < len(samples)
    name = "labels" if task == MASKS else "targets"
    for row, flip in enumerate(flipped):
        seen = before["loss_weight"][row] > 0
        mirrored = before[name][row][..., ::-1] if flip else before[name][row]
        if task == POINTS:
            np.testing.assert_array_equal(np.asarray(after["loss_weight"][row], np.float32) > 0, seen)
            np.testing.assert_allclose(after[name][row][seen], mirrored[seen], atol=1e-6)
        else:
            np.testing.assert_array_equal(after[name][row], mirrored)
        assert (after["image"][row] == before["image"][row]).all() != flip
    if task == POINTS:
        swapped = objective_for(model, samples, labels, pairs).of_epoch(3).feeds(rows, 1.0)
        for row, flip in enumerate(flipped):
            wanted = after["targets"][row][::-1] if flip else after["targets"][row]
            np.testing.assert_array_equal(swapped["targets"][row], wanted)
        with pytest.raises(ConfigError, match="flip_pairs names wing"):
            objective_for(model, samples, labels, TrainingConfig(flip_pairs=(("wing", "right"),)))
    else:
        assert set(np.unique(after["loss_weight"] > 0)) == {False, True}  # the letterbox's border counts for nothing


def test_what_does_not_fit_is_refused_before_anything_changes(bundles, discs, tmp_path):
    masks, points = (opened(bundles, task, tmp_path / task) for task in (MASKS, POINTS))
    folder = write_discs(tmp_path / "data", 8, 5)
    for number in range(7):
        Image.fromarray(np.zeros((9, 7), np.uint8)).save(folder / f"masks/{number}.png")
    with pytest.raises(DataError, match=r"0\.png: the mask is 7 × 9 pixels, its picture \d+ × \d+\n(.*\n)+and 2 more"):
        train(masks, "ann", read(folder, MASKS), None, LORA, SETTINGS)
    table = (folder / "points.csv").read_text().replace("images/3.png,middle,", "images/3.png,middle,9")
    (folder / "points.csv").write_text(table)
    with pytest.raises(DataError, match=r"3\.png: the point 'middle' lies at \(9\d+\.?\d*, .* outside of its"):
        train(points, "ann", read(folder / "points.csv", POINTS), None, LORA, SETTINGS)
    assert not masks.store.exists("ann")
    assert not points.store.exists("ann")


def test_a_gate_and_adapters_of_different_classes_by_row(bundles, discs, tmp_path, capsys):
    """Evaluation and prediction of rows whose heads have different numbers of classes."""
    model = opened(bundles, MASKS, tmp_path)
    short = TrainingConfig(num_train_epochs=1, batch_size=8, learning_rate=1e-2)
    two = read(discs[0], MASKS)
    folder = write_discs(tmp_path / "three", 8, 6)
    for file in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(file)).copy() // 255
        mask[:5], mask[5:8] = 2, IGNORED
        Image.fromarray(mask).save(file)
    (folder / "classes.txt").write_text("ground\ndisc\nedge\n", encoding="utf-8")
    three = read(folder, MASKS)
    train(model, "two", two[:8], None, LORA, short)
    train(model, "three", three, None, LORA, short)
    from edgelora.evaluation import evaluate_each

    mean, found = evaluate_each(model, [*three[:4], *two[:4]], ["three"] * 4 + ["two"] * 4)
    assert set(mean) == set(found["two"])
    assert set(found["three"]) == {
        "loss",
        "mean_iou",
        "mean_dice",
        "pixel_accuracy",
        "iou disc",
        "iou edge",
        "iou ground",
    }
    alone = evaluate(
        model.bundle, model.store.load("two"), objective_for(model, two[:4], ("ground", "disc"), TrainingConfig())
    )
    for name, value in alone.items():
        assert found["two"][name] == pytest.approx(value, rel=1e-4)
    lines = [
        {"image": str(one.path), "mask": str(one.mask), "adapter": name}
        for name, some in (("two", two[:2]), ("three", three[:2]))
        for one in some
    ]
    (folder / "each.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert (
        main(["eval", str(bundles[MASKS]), "--store", str(tmp_path / "store"), "--data", str(folder / "each.jsonl")])
        == 0
    )
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["two", "three", "all"]
    files = [two[0].path, three[0].path]
    by_row = model.predict(files, adapters=["two", "three"])
    for file, name, mask in zip(files, ("two", "three"), by_row, strict=True):
        (alone_mask,) = model.predict([file], adapter=name)
        assert (mask == alone_mask).mean() > 0.999


@pytest.mark.parametrize("task", [MASKS, POINTS])
def test_the_commands_draw(task, bundles, discs, tmp_path, capsys):
    data, test = (str(data_of(task, folder)) for folder in discs)
    bundle, store = str(bundles[task]), ["--store", str(tmp_path / "store")]
    sheet, drawn = tmp_path / "sheet.png", tmp_path / "drawn"
    settings = ["--epochs", "2", "--batch-size", "8", "--lr", "0.02", "-r", "4", "--augment", "flip", "color"]
    command = ["train", bundle, *store, "--adapter", "ann", "--data", data, "--validation", test, *settings]
    (tmp_path / "file").touch()
    for name, said in (("sheet.strange", "Name it .png"), ("a.psd", "Name it .png"), ("file/a.png", "no picture can")):
        assert main([*command, "--contact-sheet", str(tmp_path / name), "--json"]) == 2
        assert said in capsys.readouterr().err
        assert main(["adapters", bundle, *store, "list"]) == 0
        assert "ann" not in capsys.readouterr().out
    assert main([*command, "--contact-sheet", str(sheet), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["history"]) == 2
    with Image.open(sheet) as read:
        assert read.width > 900
    assert main(["eval", bundle, *store, "--adapter", "ann", "--data", test]) == 0
    assert ("mean_iou" if task == MASKS else "pck@0.1") in capsys.readouterr().out
    folder = str(discs[1] / "images")
    assert main(["predict", bundle, *store, "--adapter", "ann", folder, "--draw", str(drawn)]) == 0
    assert ("%" if task == MASKS else "middle (") in capsys.readouterr().out
    files = sorted(drawn.iterdir())
    assert [file.name for file in files] == sorted(file.name for file in (discs[1] / "images").iterdir())
    for file in files:
        with Image.open(file) as read:
            assert min(read.size) >= 320
    assert main(["predict", bundle, *store, "--adapter", "ann", folder, "--json"]) == 0
    results: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    before = {file: file.read_bytes() for file in drawn.iterdir()}
    for place, said in (
        (drawn, "could overwrite"),
        (drawn / ".." / "drawn", "overwrite"),
        (tmp_path / "file", "no pic"),
    ):
        assert main(["predict", bundle, *store, "--adapter", "ann", str(drawn), "--draw", str(place)]) == 2
        assert said in capsys.readouterr().err
    assert {file: file.read_bytes() for file in drawn.iterdir()} == before
    assert {len(one) for one in results} == {3 if task == MASKS else 2}


def test_what_does_not_occur_is_no_number(bundles, discs, tmp_path, capsys):
    """Data of one class alone, or in which no point is to be seen."""
    folder = write_discs(tmp_path / "one", 4, 7)
    store = ["--store", str(tmp_path / "store"), "--adapter", "ann"]
    for task in TASKS:
        train(opened(bundles, task, tmp_path), "ann", read(data_of(task, discs[0]), task), None, LORA, SETTINGS)
        if task == MASKS:
            for file in (folder / "masks").iterdir():
                Image.fromarray(np.zeros_like(np.asarray(Image.open(file)))).save(file)
            Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "images" / "0.png")
            Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "masks" / "0.png")
            assert main(["eval", str(bundles[task]), *store, "--data", str(folder), "--json"]) == 0
            told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
            assert 0 <= told["mean_iou"] <= 1 and all(isinstance(x, str | int | float) for x in told.values())
        else:
            table = folder / "points.csv"
            lines = [line[:-1] + "0" for line in table.read_text(encoding="utf-8").splitlines()[1:]]
            table.write_text("\n".join(["image,name,x,y,visible", *lines]), encoding="utf-8")
            assert main(["eval", str(bundles[task]), *store, "--data", str(table), "--json"]) == 2
            assert "no point of these pictures is to be seen" in capsys.readouterr().err
        (tmp_path / "store").rename(tmp_path / task)


def test_classes_are_in_the_order_of_their_numbers(tmp_path):
    folder = write_discs(tmp_path / "many", 2, 8)
    for number, file in enumerate(sorted((folder / "masks").iterdir())):
        mask = np.asarray(Image.open(file)).copy()
        mask[mask == 255] = 10 - 8 * number
        Image.fromarray(mask).save(file)
    (folder / "classes.txt").unlink()
    assert task_named(MASKS).classes(read(folder, MASKS)) == ("0", "2", "10")


def test_many_pictures_of_one_name_have_files_of_their_own(bundles, tmp_path):
    """In a moment: each name is looked for from the last number on."""
    model = opened(bundles, MASKS, tmp_path)
    inputs = [tmp_path / str(i) / "frame.png" for i in range(20_000)] + [tmp_path / "frame-2.png"]
    files = drawn_files(model, inputs, tmp_path / "drawn")
    assert len(set(files)) == len(inputs)
    assert [file.name for file in (*files[:3], files[-1])] == [
        "frame.png",
        "frame-2.png",
        "frame-3.png",
        "frame-2-2.png",
    ]


def test_classes_and_boxes_are_drawn_too():
    from edgelora.media.drawing import Box, Figure
    from edgelora.tasks import TASKS
    from edgelora.tasks.image import ImageTask

    names = ("cat", "dog")
    results = {
        "image-classification": {"image": "a.png", "label": "dog", "score": 0.75},
        "object-detection": {"objects": [{"label": "dog", "score": 0.9, "box": [1.0, 2.0, 30.0, 40.0]}]},
    }
    wanted = {
        "image-classification": Figure(names, "dog  0.75"),
        "object-detection": Figure(names, boxes=(Box((1.0, 2.0, 30.0, 40.0), "dog", 0.9),)),
    }
    for name, result in results.items():
        task = TASKS[name]
        assert isinstance(task, ImageTask)
        assert task.figure(result, names) == wanted[name]
