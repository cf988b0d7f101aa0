"""Tasks: one file each, and the registry. A new task is a new file and a line here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgelora.errors import ConfigError
from edgelora.inputs import ArrayInputs, TokenInputs
from edgelora.objectives import Objective
from edgelora.samples import Sample
from edgelora.tasks.audio_classification import AudioClassification
from edgelora.tasks.base import Task
from edgelora.tasks.feature_extraction import FeatureExtraction
from edgelora.tasks.image_classification import ImageClassification
from edgelora.tasks.keypoint_detection import KeypointDetection
from edgelora.tasks.object_detection import ObjectDetection
from edgelora.tasks.regression import Regression
from edgelora.tasks.semantic_segmentation import SemanticSegmentation
from edgelora.tasks.sentence_embedding import SentenceEmbedding
from edgelora.tasks.sequence_classification import SequenceClassification
from edgelora.tasks.speaker_verification import SpeakerVerification
from edgelora.tasks.text_generation import TextGeneration
from edgelora.tasks.token_classification import TokenClassification
from edgelora.training_config import TrainingConfig

if TYPE_CHECKING:
    from edgelora.runtime import Model

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        SequenceClassification(),
        TokenClassification(),
        Regression(),
        SentenceEmbedding(),
        FeatureExtraction(),
        ImageClassification(),
        ObjectDetection(),
        SemanticSegmentation(),
        KeypointDetection(),
        AudioClassification(),
        SpeakerVerification(),
        TextGeneration(),
    )
}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"the task {name!r} is not known here; known are {', '.join(TASKS)}")
    return TASKS[name]


def objective_for(
    model: Model, samples: Sequence[Sample], labels: tuple[str, ...] | None, config: TrainingConfig
) -> Objective:
    """The objective of these samples for the model's task; raises as `Task.objective` does."""
    return model.task.objective(model, samples, labels, config)


__all__ = ["TASKS", "ArrayInputs", "Task", "TokenInputs", "objective_for", "task_named"]
