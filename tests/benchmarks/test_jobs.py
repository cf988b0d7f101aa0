"""A job is the same behind its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.boxes import CLASSES as KINDS
from benchmarks.boxes import Boxes
from benchmarks.job import Images, Job, Settings, Texts


def test_a_job_survives_the_way_through_its_files(tmp_path: Path) -> None:
    settings = Settings("b", "m", threads=1, epochs=2, batch_size=2, learning_rate=0.1, max_steps=None, pad_id=7)
    texts = Texts.of([[1, 2, 3], [4], [5, 6]], [0, 1, 1], pad_id=7)
    Job(tmp_path, settings, texts, texts, np.array([[0, 1, 2], [2, 1, 0]])).write()
    job = Job.read(tmp_path)
    assert [rows.tolist() for rows in job.batches()] == [[0, 1], [2], [2, 1], [0]]
    assert [job.ends_epoch(step) for step in range(4)] == [False, True, False, True]
    feeds = job.train.feeds(np.array([1, 2]))
    assert feeds["input_ids"].tolist() == [[4, 7], [5, 6]]
    assert feeds["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert np.concatenate(list(job.test.evaluation_batches())).tolist() == [1, 2, 0]


def test_the_others_wait_while_epochs_are_timed(tmp_path):
    """After the first epoch, of 12 steps, nobody else has a turn; else all have one every 10 steps."""
    texts = Texts.of([[1]] * 24, [0] * 24, pad_id=0)
    order = np.stack([np.arange(24)] * 3)

    def ends(unbroken: bool) -> list[int]:
        settings = Settings("b", "m", 1, 3, 2, 0.1, None, unbroken=unbroken)
        job = Job(tmp_path, settings, texts, texts, order)
        return [step for step in range(job.total_steps) if job.ends_turn(step)]

    assert ends(unbroken=False) == [0, 10, 20, 30]
    assert ends(unbroken=True) == [0, 10, 11]


def test_pictures_of_a_job_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    images = Images(rng.standard_normal((5, 3, 4, 6), np.float32), np.arange(5) % 2)
    settings = Settings("bundle", "model", 2, 1, 2, 1e-3, None)
    Job(tmp_path, settings, images, images, np.stack([rng.permutation(5)])).write()
    again = Job.read(tmp_path)
    rows = again.batches()[0]
    np.testing.assert_array_equal(again.train.feeds(rows)["image"], images.pixels[rows])
    np.testing.assert_array_equal(np.concatenate(list(again.test.evaluation_batches())), np.arange(5))
    assert (again.steps_per_epoch, again.train.labels.tolist()) == (3, images.labels.tolist())
    assert again.train.boxes is None


def test_objects_of_a_job_are_read_back_and_cost_alike_in_any_parts(tmp_path):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 32, (4, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 32, (4, 2))], axis=1).astype(np.float32)
    images = Images(rng.standard_normal((4, 3, 64, 64), np.float32), np.arange(4), boxes, "images")
    settings = Settings("bundle", "model", 2, 1, 2, 1e-3, None, image_input="images")
    Job(tmp_path, settings, images, images, np.stack([np.arange(4)])).write()
    read = Job.read(tmp_path).train
    assert set(read.feeds(np.arange(2))) == {"images"}
    objects, rows = Boxes(read.boxes, read.labels, (64, 64)), np.asarray([2, 0, 3])
    made = rng.uniform(0.01, 0.9, (3, 5 + KINDS, 4, 4)).astype(np.float32)
    loss, slope = objects.loss(made, rows)
    parts = [objects.loss(made[part], rows[part]) for part in (np.s_[:1], np.s_[1:])]
    assert loss == pytest.approx(sum(part for part, _ in parts))
    np.testing.assert_array_equal(slope, np.concatenate([part for _, part in parts]))
    other, _ = objects.loss(made, rows[::-1])
    assert other != pytest.approx(loss)  # what is in a picture counts
