"""Trainings that diverge or are interrupted: nothing is lost, and the same command continues."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgelora import LoraConfig, TrainingConfig
from edgelora.adapter import new_adapter, to_files
from edgelora.errors import ConfigError, TrainingError
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora.training_run import fit
from tests.device.learning import FAST, Stop, assert_close, samples, stopping_at, trained


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_a_diverging_loss_is_an_error_and_nothing_saved_is_lost(open_model, optim: str):
    model = open_model()
    _, before = trained(model, FAST)
    wild = TrainingConfig(
        num_train_epochs=50, batch_size=8, learning_rate=1e30, optim=optim, max_grad_norm=0, save_steps=1
    )
    with pytest.raises(TrainingError, match=r"diverged at step \d+.*learning rate"):
        trained(model, wild, again=True)
    assert to_files(model.store.load("a")) == to_files(before)
    assert model.store.current_version("a") == 1
    for path in model.store.state_path("a").glob("*.safetensors"):
        assert np.isfinite(load_file(path)["current"]).all(), "what is kept can be continued"
    assert trained(model, FAST, data=samples(12), restart=True)[0].version == 2


@pytest.mark.parametrize("stop", [1, 2, 5, 6, 11, 12])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_continuing_gives_the_bytes_of_an_uninterrupted_run(open_model, stop: int, optim: str):
    """With validation and dropout: the state must hold the best epoch, the histories and the optimizer's moments."""
    config = TrainingConfig(num_train_epochs=4, batch_size=8, learning_rate=2e-2, optim=optim, save_steps=2)
    lora = LoraConfig(r=4, lora_dropout=0.2)
    held_out = samples()[::3]
    _, whole = trained(open_model(store="whole"), config, lora=lora, validation=held_out)
    with pytest.raises(Stop):
        trained(open_model(), config, lora=lora, validation=held_out, callback=stopping_at(stop))
    report, continued = trained(open_model(), config, lora=lora, validation=held_out)
    assert report.resumed_at == (stop if stop % 3 == 0 else stop - stop % 2)
    assert to_files(continued) == to_files(whole)
    assert not list(open_model().store.state_path("a").glob("*"))


def test_an_unfinished_run_with_other_data_is_refused_and_can_be_finished(open_model):
    config = TrainingConfig(num_train_epochs=4, batch_size=8, save_steps=1)
    with pytest.raises(Stop):
        trained(open_model(), config, callback=stopping_at(5))
    with pytest.raises(TrainingError, match=r"step 5.*--discard"):
        trained(open_model(), config, data=samples(12))
    assert trained(open_model(), config)[0].resumed_at == 5


def test_restart_continues_its_own_unfinished_run(open_model):
    """The same command continues, also where the command says --restart."""
    config = TrainingConfig(num_train_epochs=4, batch_size=8, save_steps=1)
    trained(open_model(), FAST, data=samples(12))
    with pytest.raises(Stop):
        trained(open_model(), config, restart=True, callback=stopping_at(5))
    report, adapter = trained(open_model(), config, restart=True)
    assert report.resumed_at == 5
    assert_close(adapter, trained(open_model(store="fresh"), config)[1], 0.0)


def test_what_cannot_be_finished_is_dropped_and_the_versions_stay(open_model):
    """After a divergence, a gentler rate trains on from the last version, not from a fresh adapter."""
    model = open_model()
    _, before = trained(model, FAST)
    wild = TrainingConfig(
        num_train_epochs=9, batch_size=8, learning_rate=1e30, max_grad_norm=0, optim="sgd", save_steps=1
    )
    with pytest.raises(TrainingError, match="diverged"):
        trained(model, wild)
    gentle = TrainingConfig(num_train_epochs=1, batch_size=8, learning_rate=1e-6)
    with pytest.raises(TrainingError, match="--discard"):
        trained(model, gentle)
    report, after = trained(model, gentle, discard=True)
    assert (report.version, report.resumed_at) == (2, 0)
    assert_close(before, after, 1e-4)


def test_restart_discards_another_run_and_a_damaged_state(open_model):
    config = TrainingConfig(num_train_epochs=2, batch_size=8, save_steps=1)
    with pytest.raises(Stop):
        trained(open_model(), config, callback=stopping_at(2))
    assert trained(open_model(), config, data=samples(12), restart=True)[0].resumed_at == 0
    with pytest.raises(Stop):
        trained(open_model(), config, callback=stopping_at(2))
    (state,) = open_model().store.state_path("a").iterdir()
    state.write_bytes(state.read_bytes()[:-7])
    with pytest.raises(TrainingError, match="damaged"):
        trained(open_model(), config)
    assert trained(open_model(), config, restart=True)[0].resumed_at == 0


def test_a_kill_between_publishing_and_tidying_leaves_no_trap(open_model):
    """The state of a run that is finished is not an unfinished run."""
    config = TrainingConfig(num_train_epochs=2, batch_size=8, save_steps=1)
    model = open_model()
    objective_labels = ("bright", "quiet", "warm")
    states: list[bytes] = []
    folder = model.store.state_path("a")

    def remember(_step, _progress):
        states.append((folder / "state.safetensors").read_bytes())

    trained(model, config, callback=remember)
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(states[-1])  # as if the kill came before it was removed
    assert trained(open_model(), config)[0].already_done
    assert trained(open_model(), config, data=samples(12))[0].labels == objective_labels


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
def test_a_truncated_state_is_named(open_model, cut: int):
    config = TrainingConfig(num_train_epochs=2, batch_size=8, save_steps=1)
    with pytest.raises(Stop):
        trained(open_model(), config, callback=stopping_at(2))
    (path,) = open_model().store.state_path("a").iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TrainingError, match=r"state\.safetensors.*damaged.*--discard"):
        trained(open_model(), config)


def test_fit_without_a_folder_writes_nothing(open_model, tmp_path):
    model = open_model()
    adapter = new_adapter(model.bundle.manifest, LoraConfig(), ("bright", "quiet", "warm"))
    trainer = Trainer(model.bundle, adapter, objective_for(model, samples(), adapter.labels, FAST), FAST)
    result = fit(trainer)
    assert result.progress.step == 12
    assert not (tmp_path / "store").exists()


def test_a_training_that_is_refused_before_its_first_update_leaves_nothing(open_model, tmp_path):
    """Refused by a budget, by what the data name, or when the layout of the run is on the disk already."""
    model = open_model()
    wild = TrainingConfig(num_train_epochs=2, batch_size=8, learning_rate=1e-3, save_steps=1)

    def at_first(*_: object) -> None:
        raise TrainingError("before any update")

    for refused in (
        lambda: trained(model, wild, ram=1000),
        lambda: trained(model, wild, data=samples(12)[:1]),
        lambda: trained(model, wild, ram=2_000_000_000, planned=at_first),
    ):
        with pytest.raises((ConfigError, TrainingError)):
            refused()
        assert not [path for path in model.store.root.rglob("*") if path.name == "a"]
    assert trained(model, wild)[0].version == 1
