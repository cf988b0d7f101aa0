"""EdgeLoRA's own settings that are measured, as rows: what is converted, how it runs, how it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import Contender

WORKER = "benchmarks.worker_edgelora"
LAST = 2
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """Options by the fields of ConvertOptions, SessionSettings and TrainingConfig.

    `ram` is a memory budget in bytes, `padded` makes parts of a batch as wide as the batch, `job` says where the
    adapters are: in all layers, in the last ones, or between them and the last hidden state.
    """

    name: str
    title: str
    convert: Options = field(default_factory=dict)
    session: Options = field(default_factory=dict)
    training: Options = field(default_factory=dict)
    ram: int | None = None
    padded: bool = False
    job: str = "all"

    def contender(self, bundle: str, **training: Any) -> Contender:
        """Who runs it on this bundle; `training` goes before the row's own settings."""
        options: dict[str, Any] = {
            "bundle": bundle,
            "session": dict(self.session),
            "training": {**self.training, **training},
        }
        if self.ram is not None:
            options["ram"] = self.ram
        if self.padded:
            options["padded"] = True
        return Contender(self.name, self.title, WORKER, options, job=self.job)


FP32 = Variant("fp32", "EdgeLoRA fp32, padded as PEFT", convert={"unpad": False}, padded=True)
UNPADDED = Variant("unpadded", "EdgeLoRA fp32, without padding")
INT8 = Variant("int8", "EdgeLoRA int8 base", convert={"quantize": "int8"})
CACHED = Variant(
    "cached",
    f"EdgeLoRA fp32, cached prefix, last {LAST} layers",
    convert={"train_last": (LAST,)},
    training={"train_last": LAST, "cache": "memory"},
    job="last",
)
CACHED_INT8 = Variant(
    "cached-int8",
    f"EdgeLoRA int8 base, cached prefix, last {LAST} layers",
    convert={"train_last": (LAST,), "quantize": "int8"},
    training={"train_last": LAST, "cache": "memory"},
    job="last",
)
SKIP = Variant(
    "skip",
    "EdgeLoRA fp32, skips to the last hidden state, cached",
    convert={"placement": "skip", "target_modules": None},
    training={"cache": "memory"},
    job="skip",
)
SMALL = Variant("small", "EdgeLoRA fp32, least memory", session={"low_memory": True}, training={"micro_batch_size": 8})
BUDGET = Variant("budget", "EdgeLoRA fp32, --ram 230MB", ram=230 << 20)
COST = (FP32, UNPADDED, INT8, SMALL)
AFTER_PREFIX = (CACHED, CACHED_INT8)
FASTEST = (UNPADDED, INT8, *AFTER_PREFIX, SKIP)
