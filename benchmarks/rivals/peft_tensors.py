"""An adapter in PEFT's layout as the tensors of our graph, with numpy and safetensors alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

PREFIX, FILE = "base_model.model.", "adapter_model.safetensors"


def graph_tensors(folder: Path) -> dict[str, NDArray[np.float32]]:
    """A `[in, r]` and B `[r, out]` by point, and the head's tensors as they are."""
    found: dict[str, NDArray[np.float32]] = {}
    for key, value in load_file(folder / FILE).items():
        name = key.removeprefix(PREFIX)
        lora = name.endswith((".lora_A.weight", ".lora_B.weight"))
        found[name.removesuffix(".weight") if lora else name] = value.T if lora else value
    return found
