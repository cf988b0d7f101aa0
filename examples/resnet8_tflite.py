"""A TFLite file, personalised: ResNet8 of CIFAR-10 learns ten hand signs, and comes back as the same file.

    python examples/resnet8_tflite.py SIGNS --original pretrainedResnet.tflite ... [--seeds 0 1 2] [--output FOLDER]

SIGNS is a folder with a folder of photographs for each class, as the sign language digits dataset has them. Each
original is converted up to the tensor before its softmax. LoRA learns at every product, also at those in codes, and the
adapter goes into a copy of the file, which an app that runs the original runs as it is. Every fifth photograph is held
out; with --choose these are left alone, and every fifth of the others is held out instead, to choose settings by.
Prints a table, and draws it. Needs edgelora[tflite], Pillow and matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgelora as el
from edgelora.objectives import OwnLoss
from edgelora.tasks import ArrayInputs
from edgelora.training_run import fit
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.interop.tflite_file import merged_file, save_file
from edgelora_tools.sources import open_source
from edgelora_tools.sources.tflite import original_of
from edgelora_tools.sources.tflite.model import read_model

SIZE, RANK, EPOCHS, RATE = 32, 8, 15, 1e-3


@dataclass(frozen=True)
class Row:
    """What became of one file: accuracy on held-out photographs, and how often both engines name the same class."""

    file: str
    seed: int
    before: float
    bundle: float
    interpreter: float
    agreement: float
    bytes_changed: int
    size: int


def read_signs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Photographs `[n, 32, 32, 3]` of 0 to 255 and the numbers of their classes, in a fixed shuffled order."""
    from PIL import Image

    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    classes = sorted({p.parent.name for p in files})
    pictures = [np.asarray(Image.open(p).convert("RGB").resize((SIZE, SIZE)), np.float32) for p in files]
    order = np.random.default_rng(0).permutation(len(files))
    labels = np.array([classes.index(p.parent.name) for p in files])
    return np.stack(pictures)[order], labels[order]


def before_softmax(original: Path) -> str:
    """The name of the tensor that the file's last operator, a softmax, reads."""
    graph = read_model(original.read_bytes(), str(original))
    return graph.tensors[graph.operators[-1].inputs[0]].name


def parts(count: int, choose: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which photographs are learned from, and which are held out."""
    fifth = np.arange(count) % 5 == 0
    if not choose:
        return np.flatnonzero(~fifth), np.flatnonzero(fifth)
    others = np.flatnonzero(~fifth)
    fifth = np.arange(len(others)) % 5 == 0
    return others[~fifth], others[fifth]


def personalise(original: Path, pictures: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> Iterator[Row]:
    """Convert; with each seed train, export, and run the exported file on the photographs that are held out."""
    folder: Path = options.output
    logits, bundle = before_softmax(original), folder / f"{original.stem}.edgelora"
    chosen = ConvertOptions(task="feature-extraction", output=logits, overwrite=True)
    convert(open_source(str(original)), bundle, chosen)
    model = el.Model.open(bundle, folder / f"{original.stem}.adapters")
    (spec,) = model.bundle.manifest.inputs
    learned, held = parts(len(labels), options.choose)
    taught, asked = {spec.name: pictures[learned]}, {spec.name: pictures[held]}

    def cross_entropy(outputs, rows):
        z, y = outputs[logits].astype(np.float64), labels[learned][rows]
        share = np.exp(z - z.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        loss = -np.log(np.maximum(share[np.arange(len(y)), y], 1e-12)).sum()
        share[np.arange(len(y)), y] -= 1
        return float(loss), {logits: share}

    objective, lora = OwnLoss(ArrayInputs(taught), cross_entropy), el.LoraConfig(r=RANK, lora_alpha=2 * RANK)
    plain = model.outputs(asked, None)[logits].argmax(1)
    for seed in options.seeds:
        config = el.TrainingConfig(options.epochs, learning_rate=options.rate, batch_size=32, seed=seed)
        fresh = el.new_adapter(model.bundle.manifest, lora, rng=np.random.default_rng(seed))
        adapter = fit(el.Trainer(model.bundle, fresh, objective, config)).adapter
        active = model.activate(adapter)
        merged = merged_file(model.bundle, active.graphs, active.feeds, original)
        save_file(merged, original, folder / f"{original.stem}.signs.tflite")
        theirs = original_of(merged.content, original.name, [logits], False).run(asked)[logits].argmax(1)
        ours = model.outputs(asked, adapter)[logits].argmax(1)
        was, made = (np.frombuffer(content, np.uint8) for content in (original.read_bytes(), merged.content))
        before, bundled, exported = (float((found == labels[held]).mean()) for found in (plain, ours, theirs))
        alike, changed = float((ours == theirs).mean()), int((made != was).sum())
        yield Row(original.stem, seed, before, bundled, exported, alike, changed, len(was))


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| file | seed | before | bundle | exported file | same class | bytes changed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        share = f"{r.bytes_changed:,} of {r.size:,}"
        lines.append(
            f"| {r.file} | {r.seed} | {r.before:.3f} | {r.bundle:.3f} | {r.interpreter:.3f} | {r.agreement:.3f} "
            f"| {share} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy of each file before, in the bundle and in the interpreter: the seeds' mean, least and most."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    bars = {"before": "before", "bundle": "bundle, ONNX Runtime", "interpreter": "exported file, TFLite"}
    files = list(dict.fromkeys(r.file for r in rows))
    for i, (name, label) in enumerate(bars.items()):
        reached = [np.array([getattr(r, name) for r in rows if r.file == file]) for file in files]
        means = np.array([of_file.mean() for of_file in reached])
        bounds = [[m - r.min(), r.max() - m] for m, r in zip(means, reached, strict=True)]
        found = axes.bar(np.arange(len(files)) + 0.27 * (i - 1), means, 0.25, yerr=np.transpose(bounds), label=label)
        axes.bar_label(found, fmt="%.3f", fontsize=8)
    axes.set(xticks=range(len(files)), xticklabels=files, ylim=(0, 1.15), ylabel="accuracy")
    axes.legend(loc="upper left", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Every original in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("signs", type=Path)
    parser.add_argument("--original", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, default=Path("resnet8"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--choose", action="store_true", help="hold out photographs of the ones to learn from")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    pictures, labels = read_signs(options.signs)
    rows: list[Row] = []
    for original in options.original:
        for row in personalise(original, pictures, labels, options):
            rows.append(row)
            print(row, flush=True)
    print(table(rows))
    draw(rows, options.output / "resnet8.png")


if __name__ == "__main__":
    main()
