"""Named points in a picture, one of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgelora.adapter import absent_adapter
from edgelora.errors import ConfigError, DataError
from edgelora.media.drawing import Figure, Point
from edgelora.probes import random_head
from edgelora.samples import Named, Sample, label_index
from edgelora.tasks.base import shown_input
from edgelora.tasks.image import ImageTask, answers, image_encoder, image_inputs
from edgelora.training_config import TrainingConfig
from edgelora.vision.keypoint_files import KeypointSample, read_keypoints
from edgelora.vision.keypoints import Floats, decode
from edgelora.vision.point_objective import Keypoints, on_picture

if TYPE_CHECKING:
    from edgelora.runtime import AdapterLike, Model, RawInputs

_AT_ONCE = 32  # pictures whose maps are held


class KeypointDetection(ImageTask):
    """Cross-entropy over the places of a map for each named point.

    Data are CSV or JSONL (`edgelora.vision.keypoint_files`). A prediction is an array `[points, 3]` for each picture:
    x and y in its pixels, and the score.
    """

    name: ClassVar[str] = "keypoint-detection"
    losses: ClassVar[tuple[str, ...]] = ("heatmap",)
    fields: ClassVar[tuple[str, ...]] = ("image", "name", "x", "y")
    has_classes: ClassVar[bool] = True
    least_classes: ClassVar[int] = 1

    def read(self, path: str | Path, fmt: str | None = None) -> list[Sample]:
        return [one.content for one in read_keypoints(path, fmt)]

    def read_named(self, path: str | Path, fmt: str | None = None) -> list[Named[Sample]]:
        return [Named(one.content, one.adapter, one.where) for one in read_keypoints(path, fmt)]

    def objective_of(
        self,
        model: Model,
        samples: Sequence[Sample],
        labels: tuple[str, ...] | None,
        config: TrainingConfig,
        loss: str,
    ) -> Keypoints:
        pointed = [s for s in samples if isinstance(s, KeypointSample)]
        index = label_index(pointed, labels)
        if not any(s.points for s in pointed):
            raise DataError("no point of these pictures is to be seen: there is nothing to learn or to judge by")
        inputs = image_inputs(model, [s.path for s in pointed], config)
        swapped = {a: b for pair in config.flip_pairs for a, b in (pair, pair[::-1])}
        if unknown := sorted(set(swapped) - set(index)):
            raise ConfigError(f"flip_pairs names {', '.join(unknown)}; the points are {', '.join(index)}")
        return Keypoints(inputs, pointed, index, _map_size(model), swapped=swapped)

    def predict(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[Floats]:
        return [points for points, _ in self._points(model, inputs, adapter, adapters)]

    def results(
        self, model: Model, inputs: Sequence[Any], adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[dict[str, Any]]:
        return [
            {
                "image": shown_input(raw),
                "points": {
                    name: {"x": round(float(x), 2), "y": round(float(y), 2), "score": round(float(score), 4)}
                    for name, (x, y, score) in zip(names, points, strict=True)
                },
            }
            for raw, (points, names) in zip(inputs, self._points(model, inputs, adapter, adapters), strict=True)
        ]

    def shown(self, result: Mapping[str, Any]) -> dict[str, Any]:
        points = (f"{name} ({at['x']:.1f}, {at['y']:.1f})" for name, at in result["points"].items())
        return {**result, "points": ", ".join(points)}

    def figure(self, result: Mapping[str, Any], names: tuple[str, ...]) -> Figure:
        points = tuple(Point(at["x"], at["y"], name, at["score"]) for name, at in result["points"].items())
        return Figure(names, points=points)

    def truth(self, sample: Sample, names: tuple[str, ...]) -> tuple[Path, Figure]:
        assert isinstance(sample, KeypointSample)
        return sample.path, Figure(names, points=tuple(Point(p.x, p.y, p.name) for p in sample.points))

    def _points(
        self, model: Model, inputs: RawInputs, adapter: AdapterLike, adapters: Sequence[AdapterLike] | None
    ) -> list[tuple[Floats, tuple[str, ...]]]:
        """Of each picture its points `[points, 3]` and their names."""
        made: list[tuple[Floats, tuple[str, ...]]] = []
        for one in answers(model, inputs, adapter, adapters, _AT_ONCE):
            maps = one.outputs["logits"]
            names = one.names(len(maps))
            points, scores = decode(maps[: len(names)])
            found = on_picture(points, (maps.shape[1], maps.shape[2]), one.placement)
            made.append((np.concatenate([found, scores[:, None]], 1), names))
        return made


def _map_size(model: Model) -> tuple[int, int]:
    """The height and width of the model's maps, as one run tells them where the bundle leaves them open."""
    manifest, encoder = model.bundle.manifest, image_encoder(model)
    height, width = manifest.outputs[0].shape[2:]
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    black = np.zeros((1, *encoder.settings.shape), encoder.spec.dtype)
    head = random_head(manifest, np.random.default_rng(0), 1)
    feeds = {encoder.spec.name: black, **absent_adapter(manifest), **head}
    height, width = model.bundle.forward.run(feeds)[manifest.outputs[0].name].shape[2:]
    return height, width
