"""Membranes of cells: a network that knows photographs marks them under an electron microscope.

    python examples/membranes.py EM_MEMBRANE.ZIP [FOLDER]

The data are 30 slices of a fly's nerve cord with the membranes marked (MIT); the last ten are held out. The head reads
maps inside MobileNetV2. Two adapters learn: a fresh head alone on the frozen base, and LoRA beside every dense
convolution with such a head. A sheet of each shows the truth, before and after, and a plot the mean IoU after each
epoch. Needs edgelora[torch,vision] and matplotlib, to make the bundle, to read pictures and to plot.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from curves import plot_curves
from head_and_lora import learn_both, run

HELD_OUT = 10
SIDE = 128
SETTINGS = ["--epochs", "8", "--batch-size", "4", "--lr", "0.005", "--augment", "flip", "--keep", "last"]


def split(folder: Path) -> tuple[Path, Path]:
    """The slices in two folders of pictures and masks, the last `HELD_OUT` in the second; the classes have names."""
    given = folder / "data" / "membrane" / "train"
    files = sorted((given / "image").iterdir(), key=lambda file: int(file.stem))
    parts = folder / "train", folder / "test"
    for part, chosen in zip(parts, (files[:-HELD_OUT], files[-HELD_OUT:]), strict=True):
        for name, source in (("images", "image"), ("masks", "label")):
            (part / name).mkdir(parents=True, exist_ok=True)
            for file in chosen:
                shutil.copy(given / source / file.name, part / name)
        (part / "classes.txt").write_text("membrane\ncell\n", encoding="utf-8")
    return parts


def main(data: Path, folder: Path) -> None:
    with zipfile.ZipFile(data) as archive:
        archive.extractall(folder)
    train, test = split(folder)
    bundle = folder / "membranes.edgelora"
    size = ["--image-size", SIDE, SIDE]
    run("convert", "recipe:mobilenetv2-maps", "-o", bundle, "--source-output", "fine", *size, "--no-check")
    curves = learn_both(bundle, train, test, SETTINGS, "mean_iou")
    run("predict", bundle, "--adapter", "LoRA", test / "images", "--draw", folder / "drawn")
    plot_curves(curves, "mean IoU, slices not seen", folder / "membranes.png")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    given = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    main(Path(sys.argv[1]), given)
