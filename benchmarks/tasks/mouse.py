"""A mouse in a box: snout, ears and tail base, learned from the first frames of a film and looked for in the last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.tasks.case import unpacked
from benchmarks.tasks.maps_peft import heatmap
from benchmarks.tasks.on_maps import OnMaps
from edgelora import read_samples
from edgelora.samples import Sample

TASK, HELD_OUT = "keypoint-detection", 24


def frames(folder: Path, quick: bool) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """The frames in the order of the film: the first 92 of 116, and the last 24."""
    (table,) = unpacked("mouse_keypoints", folder).rglob("CollectedData_*.csv")
    samples = sorted(read_samples(table, TASK), key=lambda sample: sample.record()[0])
    return (samples[:8], samples[-4:]) if quick else (samples[:-HELD_OUT], samples[-HELD_OUT:])


CASE = OnMaps(
    title="Mouse, MobileNetV2",
    task=TASK,
    output="coarse",
    size=(144, 192),
    metrics=("pck@0.1", "pck@0.05", "oks", "error_median"),
    epochs=10,
    batch=8,
    head_rate=3e-2,
    rate=1e-2,
    augment=(),
    tested="the last 24 of 116 frames of a film of 640 × 480; the error is in its pixels",
    tried_on=22,
    data=frames,
    loss=heatmap,
)
