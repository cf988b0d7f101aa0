"""What training within a budget would take, before there are samples: planned on random ones, in a process of its own.

The process holds what training would: the libraries, the tokenizer if text enters, the graphs. So its plan is that of a
device with the same libraries, but for the samples, which are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgelora.bundle import Bundle
from edgelora.drawn import drawn_trainer
from edgelora.errors import ConfigError, EdgeLoraError
from edgelora.memory_plan import MemoryPlan, plan_memory
from edgelora.text import TextEncoder

_RANK = 8


def forecast(path: Path, budget: int, batch_size: int, length: int) -> MemoryPlan:
    """The plan for steps of `batch_size` samples with `length` along the other dynamic dimensions, rank 8 everywhere.

    Raises:
        ConfigError: nothing fits into `budget` bytes, and what would; or the system does not tell what a process holds.
    """
    asked = json.dumps({"path": str(path), "budget": budget, "batch_size": batch_size, "length": length})
    command = [sys.executable, "-m", "edgelora.memory_forecast", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"{path}: the process that plans training failed: {reason}")
    told: dict[str, Any] = json.loads(done.stdout)
    if "refused" in told:
        raise ConfigError(told["refused"])
    return MemoryPlan(**told)


def _plan(path: Path, budget: int, batch_size: int, length: int) -> MemoryPlan:
    """`forecast` in this process."""
    bundle = Bundle.open(path, verify=False)
    manifest = bundle.manifest
    encoder = None  # held while the plan is made, as training holds it
    if manifest.preprocessing.get("kind") == "text":
        encoder = TextEncoder(path, manifest.preprocessing, manifest.inputs)
        encoder.tokens(["a text"])
    if not manifest.training:
        raise ConfigError("no gradient reaches any insertion point: leave --ram out")
    return plan_memory(drawn_trainer(bundle, manifest.training[0], batch_size, length, _RANK), None, budget)


def _answer(asked: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(asked)
    try:
        return vars(_plan(Path(body["path"]), body["budget"], body["batch_size"], body["length"]))
    except EdgeLoraError as error:
        return {"refused": str(error)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(sys.argv[1])))
