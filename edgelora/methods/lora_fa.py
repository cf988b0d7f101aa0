"""LoRA-FA: LoRA whose A stays as it began (Zhang et al. 2023, arXiv:2308.03303). What is saved is LoRA.

B's gradient is projected, so that with A frozen the product A·B moves as near as it can to where it would without, in
the Frobenius norm: dB ← (AᵀA + δ·1)⁻¹·dB / s², s the scale, δ = 1e-8 (as peft.optimizers.create_lorafa_optimizer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgelora.config import LoraConfig
from edgelora.manifest import InsertionPoint
from edgelora.methods.base import Floats, Tensors

_DELTA = 1e-8


def project(
    config: LoraConfig, tensors: Tensors, points: Sequence[InsertionPoint], gradients: Mapping[str, Floats]
) -> None:
    """Project every B's gradient in place; all points are linear."""
    for point in points:
        a, gradient = tensors[point.input_a], gradients[point.input_b]
        gram = a.T @ a + np.float32(_DELTA) * np.eye(a.shape[1], dtype=np.float32)
        gradient[...] = np.linalg.pinv(gram) @ gradient / np.float32(config.scale(point.id) ** 2)
