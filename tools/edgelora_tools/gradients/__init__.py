"""Hand-written gradient rules. Importing the package fills the registry, family by family."""

from edgelora_tools.gradients import (
    activations,
    attention,
    constants,
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalization,
    reductions,
    resize,
)
from edgelora_tools.gradients.registry import (
    NON_DIFFERENTIABLE,
    QUANTIZERS,
    RULES,
    GradientRule,
    Thunk,
    Thunks,
    gradient_rule,
    key_of,
    non_differentiable,
)

__all__ = [
    "NON_DIFFERENTIABLE",
    "QUANTIZERS",
    "RULES",
    "GradientRule",
    "Thunk",
    "Thunks",
    "activations",
    "attention",
    "constants",
    "convolution",
    "elementwise",
    "gradient_rule",
    "indexing",
    "key_of",
    "linear",
    "movement",
    "non_differentiable",
    "normalization",
    "reductions",
    "resize",
]
