"""One trial of settings, in a process of its own: some steps of one batch, and what they took, as JSON.

`python -m edgelora.trial ASKED`, JSON of `path`, `settings` (SessionSettings' fields), `micro_batch_size`,
`batch_size`, `length`, `rank` and `started`, the wall-clock time at which the process was started.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edgelora.bundle import Bundle
from edgelora.drawn import drawn_adapter, drawn_inputs, drawn_trainer
from edgelora.errors import ConfigError
from edgelora.memory import peak_memory
from edgelora.session import SessionSettings

_STEPS = 6


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv[1])
    bundle = Bundle.open(asked["path"], SessionSettings(**asked["settings"]))
    step = _anything_to_train(bundle, asked)
    times: list[float] = []
    cold = 0.0
    for _ in range(_STEPS):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
        cold = cold or time.time() - asked["started"]
    peak = peak_memory()
    result = {"cold_start_ms": 1000 * cold, "step_ms": 1000 * float(np.median(times[1:]))}
    sys.stdout.write(json.dumps(result | {"peak_memory_mb": None if peak is None else peak / 1e6}))


def _anything_to_train(bundle: Bundle, asked: dict[str, Any]) -> Callable[[], object]:
    """A step of the first training graph, without dropout if there is one; inference where there is none."""
    batch_size, length, rank = int(asked["batch_size"]), int(asked["length"]), int(asked["rank"])
    for record in sorted(bundle.manifest.training, key=lambda r: r.dropout):
        try:
            trainer = drawn_trainer(bundle, record, batch_size, length, rank, asked["micro_batch_size"])
        except ConfigError:
            continue
        rows = np.arange(batch_size, dtype=np.int64)
        return lambda: trainer.step(rows)
    inputs = drawn_inputs(bundle, batch_size, length, np.random.default_rng(0))
    feeds = {**inputs, **drawn_adapter(bundle, rank, 0).feeds(bundle.manifest)}
    return lambda: bundle.forward.run(feeds)


if __name__ == "__main__":
    main()
