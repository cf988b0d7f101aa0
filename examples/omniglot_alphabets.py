"""An adapter for each alphabet: one frozen network reads letters of Sanskrit, Korean and others, after a few of each.

    python examples/omniglot_alphabets.py OMNIGLOT_SMALL.ZIP [FOLDER]

The data are Omniglot (Lake et al. 2015, MIT): letters of many alphabets, each drawn by 20 people. Of every letter the
first 10 people's drawings are learned, the others' held out. For each alphabet two adapters learn from the same
drawings: a fresh head alone on the frozen base, and LoRA beside every dense convolution with such a head. At last
drawings of all alphabets are read in one call, each with its own adapter.
Needs edgelora[torch,vision] and matplotlib, to make the bundle and the plot.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import edgelora as el

TASK, SIDE, LEARNED_PEOPLE = "image-classification", 64, 10
ALPHABETS = ("Balinese", "Early_Aramaic", "Greek", "Latin", "Tagalog")
CONFIG = el.TrainingConfig(num_train_epochs=10, batch_size=16, learning_rate=1e-3)
HEAD_ALONE, LORA = el.LoraConfig(target_modules=()), el.LoraConfig(r=8, lora_alpha=16)


def make_bundle(path: Path) -> Path:
    """Convert MobileNetV2 for pictures of SIDE × SIDE: on a desktop, once."""
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.recipes import load_recipe, open_recipe

    recipe = load_recipe("mobilenetv2")
    convert(
        open_recipe(recipe),
        path,
        ConvertOptions(TASK, image={"size": (SIDE, SIDE), "fit": "stretch"}, name=recipe.name),
    )
    return path


def unpack(data: Path, folder: Path) -> Path:
    """The alphabets' folders of both halves of the data, side by side."""
    with zipfile.ZipFile(data) as archive:
        archive.extractall(folder)
    for part in sorted((folder / "python").glob("*.zip")):
        with zipfile.ZipFile(part) as archive:
            archive.extractall(folder)
    return folder


def split(folder: Path, alphabet: str) -> tuple[list[el.ImageSample], list[el.ImageSample]]:
    """Drawings LETTER/NUMBER_PERSON.png of the first people, and of the others."""
    files = sorted(next(folder.glob(f"images_background_small*/{alphabet}")).glob("*/*.png"))
    samples = [el.ImageSample(file, file.parent.name) for file in files]
    early = [int(sample.path.stem.split("_")[1]) <= LEARNED_PEOPLE for sample in samples]
    return [s for s, e in zip(samples, early, strict=True) if e], [
        s for s, e in zip(samples, early, strict=True) if not e
    ]


def main(data: Path, folder: Path) -> None:
    unpack(data, folder)
    model = el.Model.open(make_bundle(folder / "letters.edgelora"))
    reached: dict[str, tuple[float, float]] = {}
    mixed: list[tuple[el.ImageSample, str]] = []
    for alphabet in ALPHABETS:
        train, test = split(folder, alphabet)
        accuracies: list[float] = []
        for name, lora in ((f"{alphabet}-head", HEAD_ALONE), (alphabet, LORA)):
            el.train(model, name, train, lora=lora, config=CONFIG)
            told = model.predict([s.path for s in test], adapter=name)
            accuracies.append(float(np.mean([t == s.label for t, s in zip(told, test, strict=True)])))
        reached[alphabet] = accuracies[0], accuracies[1]
        mixed += [(sample, alphabet) for sample in test[:: len(test) // 10]]
        letters = len({sample.label for sample in train})
        print(f"{alphabet}, {letters} letters: head alone {accuracies[0]:.3f}, LoRA {accuracies[1]:.3f}", flush=True)
    told = model.predict([sample.path for sample, _ in mixed], adapters=[alphabet for _, alphabet in mixed])
    right = np.mean([t == sample.label for t, (sample, _) in zip(told, mixed, strict=True)])
    print(f"{len(mixed)} drawings of all alphabets in one call, each with its adapter: {right:.3f}")
    plot(reached, folder / "omniglot_alphabets.png")


def plot(reached: dict[str, tuple[float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.2))
    at = np.arange(len(reached))
    for number, (name, color) in enumerate((("head alone", "#bbbbbb"), ("LoRA", "#0072b2"))):
        bars = axis.bar(at + 0.4 * number - 0.2, [r[number] for r in reached.values()], 0.38, color=color, label=name)
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
    axis.set_xticks(at, [name.replace("_", " ") for name in reached])
    axis.set(ylabel="accuracy, people not seen", ylim=(0, 1.05))
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"plot: {path}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    given = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    main(Path(sys.argv[1]), given)
