"""A class for each pixel of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgelora.errors import ConfigError, DataError
from edgelora.media.drawing import Figure
from edgelora.objectives import Floats, balanced_by_count
from edgelora.samples import Named, Sample, label_index
from edgelora.tasks.base import shown_input
from edgelora.tasks.image import ImageTask, answers, image_inputs
from edgelora.training_config import TrainingConfig
from edgelora.vision.mask_files import MaskSample, read_masks
from edgelora.vision.mask_objective import Segmentation
from edgelora.vision.masks import IGNORED, Classes
from edgelora.vision.resampling import classes_of_picture
from edgelora.vision.runs import from_runs, to_runs

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs

_AT_ONCE = 16  # pictures whose logits are held


class SemanticSegmentation(ImageTask):
    """Cross-entropy and Dice of a mask of classes per picture.

    Data are a folder with the folders `images` and `masks`, or records with the fields `image` and `mask`
    (`edgelora.vision.mask_files`). A prediction is an array of class numbers `[H, W]` for each picture, in its own
    size, 255 where the model does not see it (of fit "crop").
    """

    name: ClassVar[str] = "semantic-segmentation"
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy-dice",)
    fields: ClassVar[tuple[str, ...]] = ("image", "mask")
    has_classes: ClassVar[bool] = True

    def read(self, path: str | Path, fmt: str | None = None) -> list[Sample]:
        return [one.content for one in read_masks(path, fmt)]

    def read_named(self, path: str | Path, fmt: str | None = None) -> list[Named[Sample]]:
        return [Named(one.content, one.adapter, one.where) for one in read_masks(path, fmt)]

    def classes(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        """In the order of their numbers in the masks."""
        masked = [s for s in samples if isinstance(s, MaskSample)]
        numbered = {(value, name) for s in masked for value, name in s.names if name in s.labels}
        return tuple(dict.fromkeys(name for _, name in sorted(numbered)))

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Segmentation:
        masked = [s for s in samples if isinstance(s, MaskSample)]
        index = label_index(masked, labels)
        if not any(s.labels for s in masked):
            raise DataError("no pixel of the masks has a class: there is nothing to learn or to judge by")
        if len(index) > IGNORED:
            raise ConfigError(f"there are {len(index)} classes; {IGNORED} are the most")
        inputs = image_inputs(model, [s.path for s in masked], config)
        weights = _balanced(masked, index) if config.class_weight else None
        return Segmentation(inputs, masked, index, weights, config.dice_weight)

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[Classes]:
        return [mask for mask, _ in self._masks(model, inputs, adapter, adapters)]

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        """Of each picture the share of each class, and its mask in COCO's runs."""
        made: list[dict[str, Any]] = []
        for raw, (mask, labels) in zip(inputs, self._masks(model, inputs, adapter, adapters), strict=True):
            counts = np.bincount(mask.ravel(), minlength=len(labels))[: len(labels)]
            shares = counts / max(int(counts.sum()), 1)
            present = [(number, name) for number, name in enumerate(labels) if counts[number]]
            made.append({
                "image": shown_input(raw),
                "classes": {name: round(float(shares[number]), 4) for number, name in present},
                "masks": {name: to_runs(mask == number) for number, name in present},
            })  # fmt: skip
        return made

    def shown(self, result: Mapping[str, Any]) -> dict[str, Any]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result["classes"].items())
        return {**{name: x for name, x in result.items() if name != "masks"}, "classes": shares}

    def figure(self, result: Mapping[str, Any], names: tuple[str, ...]) -> Figure:
        masks = {name: from_runs(runs) for name, runs in result["masks"].items()}
        whole = np.full(next(iter(masks.values())).shape if masks else (1, 1), IGNORED, np.uint8)
        for name, mask in masks.items():
            whole[mask] = names.index(name)
        return Figure(names, mask=whole)

    def truth(self, sample: Sample, names: tuple[str, ...]) -> tuple[Path, Figure]:
        assert isinstance(sample, MaskSample)
        return sample.path, Figure(names, mask=sample.classes({name: i for i, name in enumerate(names)}))

    def _masks(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[tuple[Classes, tuple[str, ...]]]:
        """Of each picture the classes of its pixels, and the classes' names."""
        made: list[tuple[Classes, tuple[str, ...]]] = []
        for one in answers(model, inputs, adapter, adapters, _AT_ONCE):
            logits = one.outputs["logits"]
            names = one.names(len(logits))
            made.append((classes_of_picture(logits[: len(names)], one.placement), names))
        return made


def _balanced(samples: Sequence[MaskSample], index: Mapping[str, int]) -> Floats:
    """Weights that make up for how rare a class's pixels are."""
    counts = np.zeros(len(index), np.int64)
    for sample in samples:
        names = dict(sample.names)
        for value, count in sample.values:
            if value in names:
                counts[index[names[value]]] += count
    return balanced_by_count(counts)
