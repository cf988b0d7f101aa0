"""Boxes around objects, each with a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgelora.errors import ConfigError
from edgelora.manifest import Manifest
from edgelora.media.drawing import Box, Figure
from edgelora.samples import Named, Sample, label_index
from edgelora.tasks.base import shown_input
from edgelora.tasks.image import ImageTask, answers, image_encoder, image_inputs
from edgelora.training_config import TrainingConfig
from edgelora.vision.annotations import DetectionSample, read_boxes
from edgelora.vision.average_precision import Found, Truth
from edgelora.vision.detectors import FAMILIES, Detector
from edgelora.vision.detectors.detector import CANDIDATES
from edgelora.vision.detectors.objective import Detection, in_picture

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs

_AT_ONCE = 32  # pictures whose maps are held


@dataclass(frozen=True)
class ObjectDetection(ImageTask):
    """Objects in pictures, learned from annotations in the formats of COCO, YOLO and Pascal VOC, or in CSV.

    A prediction has the objects that are at least `score` sure, without those that overlap a surer one of their label
    by more than `overlap`, at most `most` a picture.
    """

    score: float = 0.25
    overlap: float = 0.45
    most: int = 100

    name: ClassVar[str] = "object-detection"
    losses: ClassVar[tuple[str, ...]] = ("cotangent",)
    has_classes: ClassVar[bool] = True
    least_classes: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not (0 <= self.score <= 1 and 0 <= self.overlap <= 1 and self.most >= 1):
            raise ConfigError(
                f"the score ({self.score:g}) and the overlap ({self.overlap:g}) must be from 0 to 1, and the most "
                f"objects of a picture ({self.most}) at least 1"
            )

    def read(self, path: str | Path, fmt: str | None = None) -> list[Sample]:
        return [*read_boxes(path, fmt)]

    def read_named(self, path: str | Path, fmt: str | None = None) -> list[Named[Sample]]:
        return [Named(sample, None, str(sample.path)) for sample in read_boxes(path, fmt)]

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Detection:
        pictures = [s for s in samples if isinstance(s, DetectionSample)]
        index = label_index(pictures, labels)
        truths = [truth_of(sample, index) for sample in pictures]
        inputs = image_inputs(model, [s.path for s in pictures], config)
        manifest = model.bundle.manifest
        return Detection(inputs, truths, detector_of(manifest), manifest.outputs, len(index))

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[list[dict[str, Any]]]:
        """For each picture its objects, surest first: `label`, `score`, and `box` as left, top, right, bottom in its
        pixels.
        """
        manifest, size = model.bundle.manifest, image_encoder(model).settings.size
        detector, own = detector_of(manifest), () if manifest.detector is None else manifest.detector.labels
        made: list[list[dict[str, Any]]] = []
        for one in answers(model, inputs, adapter, adapters, _AT_ONCE):
            maps = [one.outputs[spec.name][None] for spec in manifest.outputs]
            (found,) = detector.find(maps, size, self.score, self.overlap, most=CANDIDATES)
            made.append(_objects(in_picture(found, one.placement), own or one.labels)[: self.most])
        return made

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        found = self.predict(model, inputs, adapter, adapters)
        return [{"image": shown_input(raw), "objects": objects} for raw, objects in zip(inputs, found, strict=True)]

    def shown(self, result: Mapping[str, Any]) -> dict[str, Any]:
        objects = (f"{one['label']} {one['score']:.2f}" for one in result["objects"])
        return {**result, "objects": ", ".join(objects)}

    def figure(self, result: Mapping[str, Any], names: tuple[str, ...]) -> Figure:
        boxes = (Box(tuple(one["box"]), str(one["label"]), one["score"]) for one in reversed(result["objects"]))
        return Figure(names, boxes=tuple(boxes))

    def truth(self, sample: Sample, names: tuple[str, ...]) -> tuple[Path, Figure]:
        assert isinstance(sample, DetectionSample)
        return sample.path, Figure(names, boxes=tuple(Box(box.corners, box.label) for box in sample.boxes))


def detector_of(manifest: Manifest) -> Detector:
    """What the maps of a bundle mean.

    Raises:
        ConfigError: it does not say, or says what is not known here.
    """
    settings = manifest.detector
    if settings is None or settings.family not in FAMILIES:
        said = "does not say" if settings is None else f"says {settings.family!r}"
        raise ConfigError(f"the bundle {said} what its detector's outputs mean; known are {', '.join(FAMILIES)}")
    anchors = tuple(tuple((one[0], one[1]) for one in level) for level in settings.anchors)
    return Detector(FAMILIES[settings.family], anchors)


def truth_of(sample: DetectionSample, index: Mapping[str, int]) -> Truth:
    """A sample's boxes with the numbers of their labels, without ignored ones of labels that are not known."""
    boxes = [box for box in sample.boxes if box.label in index or not box.ignored]
    return Truth(
        np.array([box.corners for box in boxes], np.float64).reshape(-1, 4),
        np.array([index[box.label] for box in boxes], np.int64),
        np.array([box.ignored for box in boxes], np.bool_),
    )


def _objects(found: Found, labels: tuple[str, ...] | None) -> list[dict[str, Any]]:
    return [
        {
            "label": int(label) if labels is None else labels[int(label)],
            "score": round(float(score), 4),
            "box": [round(float(x), 1) for x in box],
        }
        for box, label, score in zip(found.boxes, found.classes, found.scores, strict=True)
    ]
