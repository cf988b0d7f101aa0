"""Membranes of cells under an electron microscope: every pixel is membrane or not, learned from 20 pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.tasks.case import unpacked
from benchmarks.tasks.maps_peft import cross_entropy_dice
from benchmarks.tasks.on_maps import OnMaps
from edgelora import read_samples
from edgelora.samples import Sample

TASK, HELD_OUT = "semantic-segmentation", 10


def slices(folder: Path, quick: bool) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The first 20 of the 30 slices, in the order of their numbers, and the last 10."""
    root = unpacked("em_membrane", folder) / "data" / "membrane" / "train"
    (root / "classes.txt").write_text("membrane\ncell\n", encoding="utf-8")
    samples = sorted(read_samples(root, TASK), key=lambda sample: int(sample.record()[0].partition(".")[0]))
    return (samples[:4], samples[-2:]) if quick else (samples[:-HELD_OUT], samples[-HELD_OUT:])


CASE = OnMaps(
    title="Membranes, MobileNetV2",
    task=TASK,
    output="fine",
    size=(256, 256),
    metrics=("mean_iou", "iou membrane", "mean_dice"),
    epochs=10,
    batch=4,
    head_rate=5e-2,
    rate=1e-2,
    augment=("flip", "color"),
    tested="the last 10 of 30 slices, at their own 512 × 512 pixels",
    tried_on=5,
    data=slices,
    loss=cross_entropy_dice,
)
