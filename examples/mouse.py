"""A mouse in a box: its snout, ears and tail base, learned from the first frames of a film and found in the last.

    python examples/mouse.py MOUSE_KEYPOINTS.ZIP [FOLDER]

The data are DeepLabCut's 116 frames of a mouse in an open field, with four points each (LGPL-3.0); the last 24 are held
out. The head reads maps inside MobileNetV2. Two adapters learn: a fresh head alone on the frozen base, and LoRA beside
every dense convolution with such a head. A sheet of each shows the truth, before and after, and a plot how many of the
points are found. Needs edgelora[torch,vision] and matplotlib, to make the bundle and the plot.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

from curves import plot_curves
from head_and_lora import learn_both, run

HELD_OUT, HEADER = 24, 3
SIZE = 144, 192
SETTINGS = ["--epochs", "10", "--batch-size", "8", "--lr", "0.01", "--keep", "last"]


def split(folder: Path) -> tuple[Path, Path]:
    """The frames in the order of the film, in two files of DeepLabCut's form, the last `HELD_OUT` in the second."""
    table = next(folder.rglob("CollectedData_*.csv"))
    lines = table.read_text(encoding="utf-8").splitlines()
    header, frames = lines[:HEADER], sorted(lines[HEADER:])
    parts = table.with_name("train.csv"), table.with_name("test.csv")
    for part, chosen in zip(parts, (frames[:-HELD_OUT], frames[-HELD_OUT:]), strict=True):
        part.write_text("\n".join([*header, *chosen]) + "\n", encoding="utf-8")
    return parts


def main(data: Path, folder: Path) -> None:
    with zipfile.ZipFile(data) as archive:
        archive.extractall(folder)
    train, test = split(folder)
    bundle = folder / "mouse.edgelora"
    chosen = ["--task", "keypoint-detection", "--source-output", "coarse", "--image-size", *SIZE]
    run("convert", "recipe:mobilenetv2-maps", "-o", bundle, *chosen, "--no-check")
    curves = learn_both(bundle, train, test, SETTINGS, "pck@0.1")
    run("predict", bundle, "--adapter", "LoRA", train.parent / "img0115.png", "--draw", folder / "drawn")
    plot_curves(curves, "points found (PCK@0.1), last frames", folder / "mouse.png")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    given = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    main(Path(sys.argv[1]), given)
