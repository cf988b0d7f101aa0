"""The values that all contenders start from, and others whose B is not zero, so that every gradient says something."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.job import INITIAL, PROBE
from edgelora.adapter import Adapter, write_adapter


def write_first_values(folder: Path, initial: Adapter, rng: np.random.Generator, spread: float) -> None:
    """Write both adapters of a job; B of the second is drawn from N(0, `spread`²)."""
    write_adapter(initial, folder / INITIAL)
    probed = {
        name: rng.standard_normal(tensor.shape, np.float32) * np.float32(spread)
        for name, tensor in sorted(initial.tensors.items())
        if name.endswith(".lora_B")
    }
    write_adapter(initial.with_tensors({**initial.tensors, **probed}), folder / PROBE)
