"""Teach a detector a class that it has never seen, from 160 photographs: raccoons.

    python examples/raccoon.py [FOLDER]

FastestDet knows COCO's 80 classes. Its outputs are taken off, and an adapter gets a head of its own on the maps before
them: once on the frozen network, and once in two stages of together as many epochs, first the head alone and then LoRA
at every dense convolution beside it. The learning rates were chosen on photographs held out of the 160.
AP50 and AP are COCO's, on 40 other photographs; a plot shows AP after each epoch. Needs edgelora[torch] and matplotlib
to make the bundle and the plot, edgelora[vision] to train, and the archives `fastestdet.zip` and `raccoon.zip` in
$EDGELORA_DATA. FOLDER keeps the bundle, the adapters and the plot.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

from curves import plot_curves

import edgelora as el
from edgelora.tasks import objective_for
from edgelora.vision.annotations import DetectionSample, read_boxes

ROOT = Path(__file__).parents[1]
SIZE = 256  # pixels of a side
TRAINING = el.TrainingConfig(
    num_train_epochs=5,
    batch_size=16,
    learning_rate=2e-2,
    augment=("flip", "crop", "color"),
    load_best_model_at_end=False,
)
ALONE = el.LoraConfig(target_modules=())
STAGES = {
    "frozen network, new head": [(ALONE, replace(TRAINING, num_train_epochs=10))],
    "head first, then LoRA": [
        (ALONE, TRAINING),
        (el.LoraConfig(r=8, lora_alpha=8), replace(TRAINING, learning_rate=4e-3)),
    ],
}


def unpack(folder: Path) -> Path:
    """The photographs with their boxes, and the network's weights, in `folder`."""
    archives = Path(os.environ.get("EDGELORA_DATA", ROOT.parent / "shared" / "data"))
    for name in ("fastestdet.zip", "raccoon.zip"):
        with zipfile.ZipFile(archives / name) as archive:
            archive.extractall(folder)
    return folder


def make_bundle(weights: Path, path: Path) -> Path:
    """Convert the network without its outputs: on a desktop, once."""
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.recipes import network
    from edgelora_tools.sources.torch_export import module_source

    module, inputs, axes = network("fastestdet").maps(weights, SIZE)
    source = module_source(module, inputs, name="fastestdet", dynamic=axes)
    image = {"size": (SIZE, SIZE), "order": "BGR"}
    convert(source, path, ConvertOptions(task="object-detection", image=image, overwrite=True))
    return path


def average_precision(model: el.Model, adapter: str, samples: list[DetectionSample]) -> dict[str, float]:
    """AP50 and AP of a stored adapter."""
    loaded = model.store.load(adapter)
    return el.evaluate(model.bundle, loaded, objective_for(model, samples, loaded.labels, el.TrainingConfig()))


def main(folder: Path) -> None:
    """Convert, train both adapters, compare."""
    data = unpack(folder / "data")
    model = el.Model.open(make_bundle(data, folder / "raccoon.edgelora"))
    train, test = (read_boxes(data / "data" / f"{part}_labels.csv") for part in ("train", "test"))
    curves: dict[str, list[float]] = {}
    for number, (title, stages) in enumerate(STAGES.items()):
        name = f"raccoon-{number}"
        reports = [
            el.train(model, name, train, test, lora, config, restart=place == 0)
            for place, (lora, config) in enumerate(stages)
        ]
        curves[title] = [epoch["eval_AP"] for report in reports for epoch in report.history]
        found = average_precision(model, name, test)
        print(
            f"{title:25s} AP50 {found['AP50']:.3f}  AP {found['AP']:.3f}  in {sum(r.seconds for r in reports):.0f} s, "
            f"{reports[-1].trainable_parameters:,} parameters"
        )
    for found in model.predict([test[0].path], "raccoon-1")[0]:
        print(f"{test[0].path.name}: {found['label']} {found['score']:.2f} at {found['box']}")
    plot_curves(curves, "AP, photographs not seen", folder / "raccoon.png")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
