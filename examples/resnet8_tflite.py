"""A TFLite file, personalised: ResNet8 of CIFAR-10 learns ten hand signs, and comes back as the same file.

    python examples/resnet8_tflite.py SIGNS [--original pretrainedResnet.tflite ...] [--output FOLDER]

SIGNS is a folder with a folder of photographs for each class, as the sign language digits dataset has them. Each
original is converted up to the tensor before its softmax. LoRA learns at every product, also at those in codes, and the
adapter goes into a copy of the file, which an app that runs the original runs as it is. Prints a table, and draws it.
Needs edgelora[tflite], Pillow and matplotlib.
"""

from __future__ import annotations

import argparse
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

SIZE, RANK, EPOCHS, RATE = 32, 8, 20, 3e-3


@dataclass(frozen=True)
class Row:
    """What became of one file: accuracy on held-out photographs, and how often both engines name the same class."""

    file: str
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


def personalise(original: Path, pictures: np.ndarray, labels: np.ndarray, folder: Path, epochs: int) -> Row:
    """Convert, train, export, and run the exported file on every fifth photograph, which training has not seen."""
    logits, bundle = before_softmax(original), folder / f"{original.stem}.edgelora"
    options = ConvertOptions(task="feature-extraction", output=logits, overwrite=True)
    convert(open_source(str(original)), bundle, options)
    model = el.Model.open(bundle, folder / f"{original.stem}.adapters")
    (spec,) = model.bundle.manifest.inputs
    held = np.arange(len(labels)) % 5 == 0
    taught = {spec.name: pictures[~held]}
    asked = {spec.name: pictures[held]}

    def cross_entropy(outputs, rows):
        z, y = outputs[logits].astype(np.float64), labels[~held][rows]
        share = np.exp(z - z.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        loss = -np.log(np.maximum(share[np.arange(len(y)), y], 1e-12)).sum()
        share[np.arange(len(y)), y] -= 1
        return float(loss), {logits: share}

    objective = OwnLoss(ArrayInputs(taught), cross_entropy)
    config = el.TrainingConfig(num_train_epochs=epochs, learning_rate=RATE, batch_size=32)
    fresh = el.new_adapter(model.bundle.manifest, el.LoraConfig(r=RANK, lora_alpha=2 * RANK))
    adapter = fit(el.Trainer(model.bundle, fresh, objective, config)).adapter
    active = model.activate(adapter)
    merged = merged_file(model.bundle, active.graphs, active.feeds, original)
    save_file(merged, original, folder / f"{original.stem}.signs.tflite")
    theirs = original_of(merged.content, original.name, [logits], False).run(asked)[logits].argmax(1)
    ours, plain = (model.outputs(asked, adapter)[logits].argmax(1) for adapter in (adapter, None))
    was, made = (np.frombuffer(content, np.uint8) for content in (original.read_bytes(), merged.content))
    before, bundled, exported = (float((found == labels[held]).mean()) for found in (plain, ours, theirs))
    alike, changed = float((ours == theirs).mean()), int((made != was).sum())
    return Row(original.stem, before, bundled, exported, alike, changed, len(was))


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| file | before | bundle | exported file | same class | bytes changed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        share = f"{r.bytes_changed:,} of {r.size:,}"
        lines.append(
            f"| {r.file} | {r.before:.3f} | {r.bundle:.3f} | {r.interpreter:.3f} | {r.agreement:.3f} | {share} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy of each file before, in the bundle and in the interpreter."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    bars = {"before": "before", "bundle": "bundle, ONNX Runtime", "interpreter": "exported file, TFLite"}
    for i, (name, label) in enumerate(bars.items()):
        found = axes.bar(np.arange(len(rows)) + 0.27 * (i - 1), [getattr(r, name) for r in rows], 0.25, label=label)
        axes.bar_label(found, fmt="%.3f", fontsize=8)
    axes.set(xticks=range(len(rows)), xticklabels=[r.file for r in rows], ylim=(0, 1.1), ylabel="accuracy")
    axes.legend(loc="upper left", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Every original in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("signs", type=Path)
    parser.add_argument("--original", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, default=Path("resnet8"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    pictures, labels = read_signs(options.signs)
    rows = [personalise(one, pictures, labels, options.output, options.epochs) for one in options.original]
    print(table(rows))
    draw(rows, options.output / "resnet8.png")


if __name__ == "__main__":
    main()
