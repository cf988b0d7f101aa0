"""Hand signs of the digits: a network that knows ImageNet learns them from some people, and is asked about others.

    python examples/sign_digits.py SIGN_DIGITS.ZIP [FOLDER]

The data are the Sign Language Digits of Turkey Ankara Ayrancı Anadolu High School (Apache-2.0): 2,062 photographs, ten
digits. The last quarter of each digit's, which are of other people, is held out. Two adapters learn from 40
photographs a digit: a fresh head alone on the frozen base, and LoRA beside every dense convolution with such a head.
Needs edgelora[torch,vision] and matplotlib, to make the bundle and the plot.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from curves import plot_curves

import edgelora as el

TASK, SIDE, PER_DIGIT = "image-classification", 96, 40
CONFIG = el.TrainingConfig(8, batch_size=16, learning_rate=3e-3, load_best_model_at_end=False)
ADAPTERS = {
    "head alone": el.LoraConfig(target_modules=()),
    "LoRA": el.LoraConfig(r=8, lora_alpha=16),
}


def make_bundle(path: Path) -> Path:
    """Convert MobileNetV2 for pictures of SIDE × SIDE: on a desktop, once."""
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.recipes import load_recipe, open_recipe

    recipe = load_recipe("mobilenetv2")
    convert(open_recipe(recipe), path, ConvertOptions(TASK, image={"size": (SIDE, SIDE)}, name=recipe.name))
    return path


def split(folder: Path) -> tuple[list[el.ImageSample], list[el.ImageSample]]:
    """PER_DIGIT training pictures of each digit from its first three quarters, and all of the last one."""
    train: list[el.ImageSample] = []
    test: list[el.ImageSample] = []
    for digit in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(digit.iterdir())
        border = len(files) * 3 // 4
        chosen = np.linspace(0, border - 1, PER_DIGIT).round().astype(int)
        train += [el.ImageSample(files[i], digit.name) for i in chosen]
        test += [el.ImageSample(file, digit.name) for file in files[border:]]
    return train, test


def main(data: Path, folder: Path) -> None:
    with zipfile.ZipFile(data) as archive:
        archive.extractall(folder)
    train, test = split(folder / "Dataset")
    model = el.Model.open(make_bundle(folder / "digits.edgelora"))
    curves: dict[str, list[float]] = {}
    for name, lora in ADAPTERS.items():
        report = el.train(model, name.replace(" ", "-"), train, test, lora, CONFIG)
        curves[name] = [entry["eval_accuracy"] for entry in report.history]
        print(f"{name}: {report.trainable_parameters:,} parameters, accuracy {curves[name][-1]:.3f}", flush=True)
    told = model.predict([test[0].path, test[-1].path], adapter="LoRA")
    print(f"{test[0].path.name} is a {told[0]}, {test[-1].path.name} a {told[1]}")
    plot_curves(curves, "accuracy, people not seen", folder / "sign_digits.png")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    given = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    main(Path(sys.argv[1]), given)
