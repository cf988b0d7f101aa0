"""Between steps the weights that every one reads stay resident; a token table, and what another graph wants, do not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.manifest import GatheredTable, MemoryTable
from edgelora.memory import resident_files
from edgelora.objectives import Regression
from edgelora.session import SessionSettings
from edgelora.tasks import ArrayInputs
from edgelora.trainer import Trainer
from edgelora.training_config import TrainingConfig
from tests.convert.bundles import to_bundle
from tests.convert.networks import tower

WIDTH, DEPTH, BATCH = 512, 16, 4
WEIGHTS = DEPTH * WIDTH**2 * 4
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """17 MB of weights."""
    path = to_bundle(
        tower(WIDTH, DEPTH),
        tmp_path_factory.mktemp("wide"),
        task="regression",
        pooling="pooler",
    )
    return Bundle.open(path.path, SessionSettings(low_memory=True, threads=1)).verified()


def trainer_of(bundle: Bundle) -> Trainer:
    rng = np.random.default_rng(0)
    adapter = new_adapter(bundle.manifest, LoraConfig(r=4, lora_alpha=4), None, outputs=2, rng=rng)
    x, y = rng.standard_normal((BATCH, WIDTH), np.float32), rng.standard_normal((BATCH, 2), np.float32)
    config = TrainingConfig(batch_size=BATCH, learning_rate=1e-4, max_grad_norm=0.0)
    return Trainer(bundle, adapter, Regression(ArrayInputs({"x": x}), y), config)


@linux
def test_a_steps_weights_stay_until_another_graph_runs(bundle: Bundle):
    trainer = trainer_of(bundle)
    trainer.step(np.arange(BATCH))
    bundle.give_back_pages()
    before = resident_files()
    for _ in range(3):
        trainer.step(np.arange(BATCH))
        assert 0.8 * WEIGHTS < resident_files() - before < 1.2 * WEIGHTS
    trainer.evaluate(trainer.objective)
    assert resident_files() - before < 0.2 * WEIGHTS
    trainer.step(np.arange(BATCH))
    trainer.close()
    assert resident_files() - before < 0.2 * WEIGHTS


@linux
def test_the_pages_of_a_token_table_are_given_back(bundle: Bundle):
    trainer, graph = trainer_of(bundle), next(iter(bundle._graphs.values()))
    trainer.step(np.arange(BATCH))
    graph._reads_alike = False  # as of a graph with a table, of which each run reads other rows
    bundle.give_back_pages()
    before = resident_files()
    trainer.step(np.arange(BATCH))
    assert resident_files() - before < 0.2 * WEIGHTS


@pytest.mark.parametrize(("rows", "alike"), [(0, True), (1000, True), (30_522, False)])
def test_a_small_table_changes_nothing(rows: int, alike: bool):
    table = MemoryTable((), 0, 0, 0, 0, (GatheredTable("input_ids", rows, 384 * 2),))
    assert table.reads_alike is alike
