"""Steps after the first make no arrays but the batch's own."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from edgelora.bundle import Bundle
from edgelora.drawn import drawn_trainer
from edgelora.session import SessionSettings


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_step_allocates_nothing_of_the_adapters_size(bundle, threads, micro_batch_size):
    opened = Bundle.open(bundle, SessionSettings(threads=threads))
    record = opened.training("cross-entropy", dropout=False)
    trainer = drawn_trainer(opened, record, batch_size=8, length=6, rank=256, micro_batch_size=micro_batch_size)
    rows = np.arange(8)
    trainer.step(rows)
    fed = sum(array.nbytes for array in trainer.objective.feeds(rows, 8.0).values())
    room = trainer.flat.nbytes // 8
    assert fed < room
    tracemalloc.start()
    try:
        trainer.step(rows)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(9):
            tracemalloc.reset_peak()
            held, _ = tracemalloc.get_traced_memory()
            trainer.step(rows)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - held < fed + room, f"{peak - held:,} bytes in a step; the adapter has {trainer.flat.nbytes:,}"
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 16_000
