"""EdgeLoRA: personalise a frozen model on the device where it runs.

import edgelora as el

model = el.Model.open("home.edgelora")
el.train(model, "user-1", el.read_samples("user-1.jsonl", model.bundle.manifest.task))
model.predict(["make it cosy"], adapter="user-1")
"""

from edgelora import interruption

interruption.listen()  # before all that takes time to import

# ruff: noqa: E402
from edgelora.adapter import Adapter, new_adapter
from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.combining import combine
from edgelora.config import LoraConfig
from edgelora.data import ImageSample, NumberSample, PairSample, TextSample, TokenSample, read_samples
from edgelora.errors import (
    AdapterError,
    BundleError,
    ConfigError,
    ConversionError,
    DataError,
    EdgeLoraError,
    StoreError,
    StoreWarning,
    TrainingError,
)
from edgelora.gate import Gate, Verdict
from edgelora.language.conversation import Chat
from edgelora.language.sampling import GenerationConfig
from edgelora.methods import (
    BeftConfig,
    BottleneckConfig,
    FullConfig,
    IA3Config,
    LNTuningConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
)
from edgelora.objectives import OwnLoss
from edgelora.runtime import Model
from edgelora.sealing import Key
from edgelora.session import SessionSettings
from edgelora.store import AdapterStore
from edgelora.store_settings import StoreSettings
from edgelora.trainer import Trainer, evaluate
from edgelora.training import train
from edgelora.training_config import TrainingConfig
from edgelora.training_report import TrainingReport

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterError",
    "AdapterStore",
    "BeftConfig",
    "BottleneckConfig",
    "Bundle",
    "BundleError",
    "Chat",
    "ConfigError",
    "ConversionError",
    "DataError",
    "EdgeLoraError",
    "FullConfig",
    "Gate",
    "GenerationConfig",
    "IA3Config",
    "ImageSample",
    "Key",
    "LNTuningConfig",
    "LoraConfig",
    "Model",
    "NumberSample",
    "OwnLoss",
    "PairSample",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "SessionSettings",
    "StoreError",
    "StoreSettings",
    "StoreWarning",
    "TextSample",
    "TokenSample",
    "Trainer",
    "TrainingConfig",
    "TrainingError",
    "TrainingReport",
    "VeraConfig",
    "Verdict",
    "check",
    "combine",
    "evaluate",
    "new_adapter",
    "read_samples",
    "train",
]
