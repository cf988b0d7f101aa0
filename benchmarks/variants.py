"""EdgeLoRA's own settings that are measured, as rows: what is converted, how it runs, how it trains.

A row names options by the fields of ConvertOptions, SessionSettings and TrainingConfig. One that the installed
package does not have makes the row "not available", with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from benchmarks.measure import Contender
from edgelora import SessionSettings, TrainingConfig
from edgelora_tools.compile import ConvertOptions

WORKER = "benchmarks.worker_edgelora"
LAST = 2
Options = Mapping[str, Any]
KINDS: tuple[tuple[str, type], ...] = (
    ("convert", ConvertOptions),
    ("session", SessionSettings),
    ("training", TrainingConfig),
)


@dataclass(frozen=True)
class Variant:
    """`defaults` are options that are passed over where the package does not have them: they say what it does anyway.

    `ram` is a memory budget in bytes, `last` is for adapters in the last layers alone.
    """

    name: str
    title: str
    convert: Options = field(default_factory=dict)
    session: Options = field(default_factory=dict)
    training: Options = field(default_factory=dict)
    defaults: frozenset[str] = frozenset()
    ram: int | None = None
    last: bool = False

    def unknown(self) -> list[str]:
        """The options that the installed package does not have, as Kind.name."""
        return [
            f"{kind.__name__}.{name}"
            for part, kind in KINDS
            for name in getattr(self, part)
            if name not in self.defaults and name not in known(kind)
        ]

    def options(self, part: str) -> dict[str, Any]:
        """The options of "convert", "session" or "training" that the installed package has."""
        return {n: v for n, v in getattr(self, part).items() if n in known(dict(KINDS)[part])}

    def contender(self, bundle: str, job: str, **training: Any) -> Contender:
        """Who runs it on this bundle; `training` goes before the row's own."""
        options: dict[str, Any] = {
            "bundle": bundle,
            "session": self.options("session"),
            "training": self.options("training") | training,
        }
        if self.ram is not None:
            options["ram"] = self.ram
        return Contender(self.name, self.title, WORKER, options, job=job)


def known(kind: Any) -> set[str]:
    """Names of the fields of a dataclass."""
    return {f.name for f in fields(kind)}


FP32 = Variant("fp32", "EdgeLoRA fp32, padded as PEFT", convert={"unpad": False}, defaults=frozenset({"unpad"}))
UNPADDED = Variant("unpadded", "EdgeLoRA fp32, without padding", convert={"unpad": True})
INT8 = Variant("int8", "EdgeLoRA int8 base", convert={"quantize": "int8"})
CACHED = Variant(
    "cached",
    f"EdgeLoRA, cached prefix, last {LAST} layers",
    convert={"train_last": (LAST,)},
    training={"train_last": LAST, "cache": "memory"},
    last=True,
)
SMALL = Variant("small", "EdgeLoRA, least memory", session={"low_memory": True}, training={"micro_batch_size": 8})
BUDGET = Variant("budget", "EdgeLoRA, --ram 230MB", ram=230 << 20)
COST = (FP32, UNPADDED, INT8, SMALL)
FASTEST = (
    Variant("short-parts", "EdgeLoRA fp32, parts by length", training={"micro_batch_size": 16}),
    UNPADDED,
    INT8,
    CACHED,
)
