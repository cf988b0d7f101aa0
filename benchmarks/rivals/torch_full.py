"""Full fine-tuning in PyTorch: no adapters, every weight is trained."""

from __future__ import annotations

from benchmarks.rivals.base import Rival

FULL = Rival(
    "torch-full",
    "full fine-tuning, torch",
    "benchmarks.worker_peft",
    options={"attention": "sdpa", "full": True, "learning_rate": 2e-4},
)
