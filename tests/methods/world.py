"""What the contract is checked on: a tiny BERT in torch and its bundles with graphs for every method."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch.nn import functional

from edgelora.adapter import Adapter, new_adapter
from edgelora.config import AdapterConfig
from edgelora.data import TextSample
from edgelora.runtime import Model
from edgelora_tools.methods import METHODS
from tests.device import tiny

LABELS = ("bright", "quiet", "warm")
TEXTS = tuple(row["text"] for row in tiny.commands(7))
logging.getLogger("transformers").setLevel(logging.ERROR)


@dataclass(frozen=True)
class World:
    """The folder of the bundles; opened once each."""

    folder: Path

    @functools.cached_property
    def classifier(self) -> Model:
        """A bundle with a head."""
        return self._model("sequence-classification")

    @functools.cached_property
    def features(self) -> Model:
        """A bundle that returns the hidden states."""
        return self._model("feature-extraction")

    def _model(self, task: str) -> Model:
        path = tiny.write_bundle(tiny.module(), task, self.folder / f"{task}.edgelora", methods=tuple(METHODS))
        return Model.open(path, self.folder / f"{task}.adapters")

    def adapter(self, config: AdapterConfig, head: bool = False, seed: int = 0) -> Adapter:
        """An adapter of which every trained tensor has been moved away from its first value."""
        model = self.classifier if head else self.features
        rng = np.random.default_rng(seed)
        fresh = new_adapter(model.bundle.manifest, config, LABELS if head else None, rng=rng, base=model.bundle)
        moved = {
            name: tensor + rng.normal(0, 0.2, tensor.shape).astype(np.float32)
            for name, tensor in fresh.tensors.items()
            if fresh.method.is_trained(name)
        }
        return fresh.with_tensors({**fresh.tensors, **moved})

    def hidden(self, adapter: Adapter | None) -> np.ndarray:
        """The hidden states of `TEXTS`, as the bundle has them where no padding is."""
        outputs = self.features.outputs(list(TEXTS), adapter)
        return self._without_padding(outputs["hidden"])

    def hidden_in_file(self, path: Path) -> np.ndarray:
        """The same by a plain ONNX model."""
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (hidden,) = session.run(["hidden"], dict(self.features.encode(list(TEXTS))))
        return self._without_padding(np.asarray(hidden))

    def hidden_in_torch(self, module: Any) -> np.ndarray:
        """The same by a torch module."""
        with torch.no_grad():
            return self._without_padding(module(**self.feeds()).last_hidden_state.numpy())

    def feeds(self, texts: tuple[str, ...] = TEXTS) -> dict[str, torch.Tensor]:
        """What the module takes."""
        return {name: torch.from_numpy(x) for name, x in self.features.encode(list(texts)).items()}

    def _without_padding(self, hidden: np.ndarray) -> np.ndarray:
        mask = self.features.encode(list(TEXTS))["attention_mask"] == 1
        return hidden[:, -mask.shape[1] :][mask]


def samples() -> list[TextSample]:
    """Commands of three classes."""
    return [TextSample(row["text"], row["label"]) for row in tiny.commands()]


def loss_in_torch(module: Any, feeds: dict[str, torch.Tensor], head: tuple[torch.Tensor, torch.Tensor], labels: Any):
    """Mean pooling, over virtual tokens too, a head and cross-entropy."""
    hidden = module(**feeds).last_hidden_state
    mask = feeds["attention_mask"][..., None].float()
    mask = functional.pad(mask, (0, 0, hidden.shape[1] - mask.shape[1], 0), value=1.0)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return functional.cross_entropy(pooled @ head[0].T + head[1], labels)
