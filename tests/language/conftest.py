"""The tiny decoder of all tests with an empty store, and adapters of random values for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelora.adapter import Adapter, new_adapter
from edgelora.config import LoraConfig
from edgelora.runtime import Model
from tests.language_models import build


@pytest.fixture(scope="session")
def causal() -> Any:
    """The decoder as transformers has it."""
    return build("llama")


@pytest.fixture
def model(language_bundle: Path, tmp_path: Path) -> Model:
    """Its bundle with an empty store."""
    return Model.open(language_bundle, tmp_path / "store")


@pytest.fixture
def drawn(model: Model) -> Callable[..., Adapter]:
    """drawn(seed, rank): an adapter of random values that changes what is said."""

    def made(seed: int, rank: int = 4) -> Adapter:
        rng = np.random.default_rng(seed)
        fresh = new_adapter(model.bundle.manifest, LoraConfig(r=rank, lora_alpha=2 * rank))
        values = {n: (rng.standard_normal(t.shape) * 0.3).astype(np.float32) for n, t in fresh.tensors.items()}
        return fresh.with_tensors(values)

    return made
