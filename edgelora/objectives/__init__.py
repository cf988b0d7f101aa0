"""What a task asks of a batch: the loss inputs to feed, and the metrics to report."""

from edgelora.objectives.base import (
    Array,
    Feeds,
    FileInputs,
    Floats,
    HostLoss,
    Inputs,
    Judge,
    Objective,
    OnSamples,
    first_output,
    is_augmented,
)
from edgelora.objectives.labels import (
    Classification,
    TokenClassification,
    balanced_by_count,
    balanced_weights,
    log_sum_exp,
)
from edgelora.objectives.own_loss import LossFunction, OwnLoss
from edgelora.objectives.pairs import NO_CANDIDATE, Pairs, stack
from edgelora.objectives.regression import Regression

__all__ = [
    "NO_CANDIDATE",
    "Array",
    "Classification",
    "Feeds",
    "FileInputs",
    "Floats",
    "HostLoss",
    "Inputs",
    "Judge",
    "LossFunction",
    "Objective",
    "OnSamples",
    "OwnLoss",
    "Pairs",
    "Regression",
    "TokenClassification",
    "balanced_by_count",
    "balanced_weights",
    "first_output",
    "is_augmented",
    "log_sum_exp",
    "stack",
]
