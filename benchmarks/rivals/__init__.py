"""The rivals, a small file each: who runs against us, and what has to be there first."""

from __future__ import annotations

from benchmarks.rivals import onnxsim, ort_training, peft, torch_full
from benchmarks.rivals.base import Rival, Unavailable

RIVALS: tuple[Rival, ...] = (
    peft.EAGER,
    peft.SDPA,
    peft.COMPILED,
    torch_full.FULL,
    ort_training.ORT_TRAINING,
    onnxsim.ONNXSIM,
)

__all__ = ["RIVALS", "Rival", "Unavailable"]
