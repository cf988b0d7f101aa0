"""Hand-written gradient rules. Importing the package fills the registry, family by family."""

from edgelora_tools.gradients import activations, elementwise, linear
from edgelora_tools.gradients.registry import (
    NON_DIFFERENTIABLE,
    RULES,
    GradientRule,
    Thunk,
    gradient_rule,
    key_of,
    non_differentiable,
)

__all__ = [
    "NON_DIFFERENTIABLE",
    "RULES",
    "GradientRule",
    "Thunk",
    "activations",
    "elementwise",
    "gradient_rule",
    "key_of",
    "linear",
    "non_differentiable",
]
