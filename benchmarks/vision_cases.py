"""The networks of the vision benchmark: their weights, what is adapted, and the bundles of its rounds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import clinc
from benchmarks.boxes import CLASSES, FAMILY
from benchmarks.tasks.case import unpacked
from edgelora.manifest import DetectorSettings
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import NETWORK, cache_folder, fetch, load_recipe, network, recipe_folder
from edgelora_tools.sources.torch_export import module_source

ROUNDS = ("step", "last", "int8")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """A network of `models/NAME/network.py` at one size.

    `last` is the number of blocks that the round "last" trains; with `boxes` the network is a detector whose loss is
    computed on the host, else it is given a head of classes. `zipped`: its weights lie in a zip of $EDGELORA_DATA, else
    its recipe says where they are.
    """

    name: str
    title: str
    factory: str
    size: int
    batch_size: int
    last: int
    rounds: tuple[str, ...] = ROUNDS
    boxes: bool = False
    zipped: bool = False

    @property
    def network(self) -> Path:
        """The file with the network."""
        return recipe_folder() / self.name / NETWORK

    def weights(self, progress: Progress) -> Path:
        """The folder of the weights.

        Raises:
            BenchmarkError: the data are not there. ConversionError: the recipe's files cannot be had.
        """
        if self.zipped:
            return unpacked(self.name, cache_folder() / "benchmarks" / self.name)
        return fetch(load_recipe(self.name), progress)

    def bundle(self, rounds: str, weights: Path, progress: Progress) -> Path:
        """The bundle of a round, converted anew whenever the converter's source has changed."""
        settings: dict[str, Any] = {"task": "image-classification"}
        if self.boxes:
            labels = tuple(map(str, range(CLASSES)))
            settings = {"task": "object-detection", "detector": DetectorSettings(FAMILY, labels=labels)}
        if rounds == "last":
            settings["train_last"] = (self.last,)
        if rounds == "int8":
            settings["quantize"] = "int8"
        what = repr((self.name, self.size, self.batch_size, sorted(settings), clinc.source_digest()))
        path = cache_folder() / "benchmarks" / f"{self.name}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.edgelora"
        if not (path / "bundle.json").is_file():
            progress("converting the model")
            module, inputs, axes = getattr(network(self.name), self.factory)(weights)
            chosen = ConvertOptions(
                image={"size": (self.size, self.size)}, overwrite=True, batch_size=self.batch_size, **settings
            )
            convert(module_source(module, inputs, self.name, dynamic=axes), path, chosen)
        return path


CASES = {
    case.name: case
    for case in (
        Case("mobilenetv2", "MobileNetV2, LoRA r8 on all 1×1 and the first convolution", "features", 224, 8, 3),
        Case("efficientnet-lite0", "EfficientNet-Lite0, LoRA r8 on all dense convolutions", "features", 224, 8, 3),
        Case(
            "fastestdet",
            "FastestDet, LoRA r8 on all dense convolutions",
            "detector",
            352,
            8,
            0,
            rounds=("step",),
            boxes=True,
            zipped=True,
        ),
    )
}
