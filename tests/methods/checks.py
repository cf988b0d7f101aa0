"""The contract of an adapter method: what must hold for every one, against its twin in torch and itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgelora import AdapterStore, LoraConfig, TrainingConfig
from edgelora.adapter import absent_adapter, new_adapter, read_adapter, to_files, write_adapter
from edgelora.config import AdapterConfig
from edgelora.errors import AdapterError, ConfigError
from edgelora.methods import method_of
from edgelora.tasks import objective_for
from edgelora.trainer import Trainer
from edgelora.training_run import fit
from edgelora.training_state import StateFile
from edgelora_tools.interop.merging import merge, unmerge
from edgelora_tools.interop.plain_onnx import save_plain
from tests.device import tiny
from tests.methods.cases import Case
from tests.methods.twins import moved
from tests.methods.world import LABELS, TEXTS, World, loss_in_torch, samples

IN_GRAPHS_OF_THEIR_OWN = ("layer-norm", "full", "lora-bias")  # a merged model begins as the graph of the method
CLOSE, GRADIENT, LEAST = 1e-5, 1e-4, 1e-3
RUN = TrainingConfig(num_train_epochs=2, batch_size=8, learning_rate=1e-2)


def off_is_the_base(world: World, case: Case, folder: Path) -> None:
    """The method's graphs with neutral feeds return the base's bits; so does an adapter as it begins, if it is to."""
    bundle = world.features.bundle
    graphs = method_of(case.ours).graphs
    inputs = world.features.encode(list(TEXTS))
    base = bundle.forward.run({**inputs, **absent_adapter(bundle.manifest)})["hidden"]
    off = bundle.forward_in(graphs).run({**inputs, **absent_adapter(bundle.manifest, graphs, bundle)})["hidden"]
    np.testing.assert_array_equal(off, base)
    fresh = new_adapter(bundle.manifest, case.ours, base=bundle)
    if not case.begins_as_the_base:
        assert np.abs(world.hidden(fresh) - world.hidden(None)).max() > 1e-2
        return
    np.testing.assert_allclose(world.hidden(fresh), world.hidden(None), rtol=0, atol=CLOSE)


def the_twins_adapters_compute_the_same_here(world: World, case: Case, folder: Path) -> None:
    """What PEFT saved is read, and gives PEFT's outputs."""
    model = moved(case.twin.attach(tiny.module()))
    case.twin.save(model, folder)
    bundle = world.features.bundle
    adapter = read_adapter(folder, bundle.manifest, accept_base=True, base=bundle)
    expected = world.hidden_in_torch(model)
    assert np.abs(expected - world.hidden(None)).max() > 1e-2
    np.testing.assert_allclose(world.hidden(adapter), expected, rtol=0, atol=CLOSE)


def our_adapters_compute_the_same_in_the_twin(world: World, case: Case, folder: Path) -> None:
    """PEFT reads what we write, without a warning about keys, and gives our outputs."""
    adapter = world.adapter(case.ours)
    write_adapter(adapter, folder)
    ours = world.hidden(adapter)
    assert np.abs(ours - world.hidden(None)).max() > 1e-2
    theirs = world.hidden_in_torch(case.twin.load(tiny.module(), folder))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE)


def files_hold_the_adapter(world: World, case: Case, folder: Path) -> None:
    """Read and written again, the bytes are the same, in a folder and in a store."""
    adapter = world.adapter(case.ours, head=True)
    write_adapter(adapter, folder / "a")
    again = read_adapter(folder / "a")
    assert again.config == adapter.config
    assert again.tensors.keys() == adapter.tensors.keys()
    for name, tensor in adapter.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    assert to_files(again) == to_files(adapter)
    store = AdapterStore(folder / "store")
    store.save("a", adapter)
    assert to_files(store.load("a")) == to_files(adapter)


def gradients_are_torchs(world: World, case: Case, folder: Path) -> None:
    """Through the twin's model, mean pooling, a head and cross-entropy, over a batch with padding."""
    adapter = world.adapter(case.ours, head=True)
    data, rows = samples(), np.arange(5, 15)
    model = world.classifier
    trainer = Trainer(model.bundle, adapter, objective_for(model, data, adapter.labels, RUN), RUN)
    loss = trainer.accumulate(rows)
    ours = adapter.with_tensors({**adapter.tensors, **trainer.gradients()})

    without_head = {n: t for n, t in adapter.tensors.items() if not n.startswith("classifier")}
    write_adapter(replace(adapter, tensors=without_head, config=case.ours), folder / "adapter")
    module = case.twin.load(tiny.module(), folder / "adapter", trainable=True)
    weight, bias = (torch.from_numpy(adapter.tensors[f"classifier.{n}"]).requires_grad_() for n in ("weight", "bias"))
    labels = torch.tensor([LABELS.index(data[i].label) for i in rows])
    theirs = loss_in_torch(module, world.feeds(tuple(data[i].text for i in rows)), (weight, bias), labels)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    assert close(ours.tensors["classifier.weight"], weight.grad), "classifier.weight"
    assert close(ours.tensors["classifier.bias"], bias.grad), "classifier.bias"
    for parameter in module.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            parameter.data = parameter.grad
    case.twin.save(module, folder / "gradients")
    expected = read_adapter(folder / "gradients", model.bundle.manifest, accept_base=True)
    trained = [name for name in without_head if adapter.method.is_trained(name)]
    assert trained and {n for n in expected.tensors if adapter.method.is_trained(n)} == set(trained)
    for name in trained:
        assert close(ours.tensors[name], expected.tensors[name]), name


def merging_is_the_twins(world: World, case: Case, folder: Path) -> None:
    """A plain model computes what the twin merged does, and the way back is the base; or there is neither."""
    adapter, bundle = world.adapter(case.ours), world.features.bundle
    write_adapter(adapter, folder / "adapter")
    expected = case.twin.merged(case.twin.load(tiny.module(), folder / "adapter"))
    if expected is None:
        with pytest.raises(AdapterError, match=f"{adapter.method.graphs} adapter cannot be merged"):
            merge(bundle, adapter)
        return
    merged = merge(bundle, adapter)
    assert not merged.beside and merged.originals
    save_plain(merged.model, folder / "merged.onnx")
    ours = world.hidden_in_file(folder / "merged.onnx")
    np.testing.assert_allclose(ours, world.hidden_in_torch(expected), rtol=0, atol=CLOSE)
    np.testing.assert_allclose(ours, world.hidden(adapter), rtol=0, atol=CLOSE)
    save_plain(unmerge(merged), folder / "back.onnx")
    save_plain(merge(bundle, None).model, folder / "base.onnx")
    np.testing.assert_array_equal(world.hidden_in_file(folder / "back.onnx"), world.hidden(None))
    if adapter.method.graphs not in IN_GRAPHS_OF_THEIR_OWN:
        assert (folder / "back.onnx").read_bytes() == (folder / "base.onnx").read_bytes()
    np.testing.assert_array_equal(world.hidden_in_file(folder / "base.onnx"), world.hidden(None))


def several_at_once_are_each_alone(world: World, case: Case, folder: Path) -> None:
    """Rows with adapters of this method, of LoRA and of none, in one call."""
    model = world.features
    two = [world.adapter(case.ours, seed=seed) for seed in (1, 2)]
    other = world.adapter(LoraConfig(r=3, target_modules=("query",)), seed=3)
    adapters = [two[0], None, other, two[1], two[0], other, two[1]]
    together = model.outputs(list(TEXTS), adapters=adapters)["hidden"]
    mask = model.encode(list(TEXTS))["attention_mask"] == 1
    for adapter in (None, other, *two):
        rows = [i for i, one in enumerate(adapters) if one is adapter]
        alone = model.outputs(list(TEXTS), adapter)["hidden"]
        assert rows
        for row in rows:
            np.testing.assert_allclose(together[row][mask[row]], alone[row][mask[row]], rtol=0, atol=CLOSE)
    assert np.abs(world.hidden(two[0]) - world.hidden(two[1])).max() > 1e-2


class Killed(Exception):
    """Stands for the power that goes."""


def a_killed_run_resumes_to_the_same_bits(world: World, case: Case, folder: Path) -> None:
    """Training lowers the loss; stopped in the middle and continued, it ends at the same tensors."""
    whole = fit(made_trainer(world, case.ours), state=StateFile(folder / "whole", "x"))
    losses = [entry["train_loss"] for entry in whole.progress.history]
    assert losses[-1] < losses[0]

    def kill(step, progress) -> None:
        if step.step == 4:
            raise Killed

    with pytest.raises(Killed):
        fit(made_trainer(world, case.ours), state=StateFile(folder / "cut", "x"), callback=kill)
    resumed = fit(made_trainer(world, case.ours), state=StateFile(folder / "cut", "x"))
    assert resumed.resumed_at > 0
    for name, tensor in whole.adapter.tensors.items():
        np.testing.assert_array_equal(resumed.adapter.tensors[name], tensor, err_msg=name)
        fresh = made_trainer(world, case.ours).adapter.tensors[name]
        assert np.array_equal(tensor, fresh) != whole.adapter.method.is_trained(name), name


def another_base_is_refused(world: World, case: Case, folder: Path) -> None:
    """By its digest; and so is a bundle that has no graphs for the method."""
    adapter, manifest = world.adapter(case.ours), world.features.bundle.manifest
    adapter.validate(manifest)
    with pytest.raises(AdapterError, match="another base"):
        world.features.outputs(list(TEXTS), replace(adapter, base_digest="ab" * 32))
    if adapter.method.graphs != "lora":
        with pytest.raises(
            AdapterError, match=f"for {adapter.method.graphs} adapters: .*--methods {adapter.method.graphs}"
        ):
            adapter.validate(replace(manifest, methods={}))
        with pytest.raises(
            ConfigError, match=f"for {adapter.method.graphs} adapters: .*--methods {adapter.method.graphs}"
        ):
            new_adapter(replace(manifest, methods={}), case.ours)


def what_does_not_fit_is_named(world: World, case: Case, folder: Path) -> None:
    """A missing tensor, another shape, NaN."""
    adapter, manifest = world.adapter(case.ours), world.features.bundle.manifest
    for name, tensor in adapter.tensors.items():
        if not adapter.method.is_trained(name):
            continue
        for bad in (np.zeros((3, 1, 2), np.float32), np.full_like(tensor, np.nan)):
            with pytest.raises(AdapterError, match=name.rpartition(".")[2]):
                adapter.with_tensors({**adapter.tensors, name: bad}).validate(manifest)
    for name in adapter.method.shared:
        with pytest.raises(AdapterError, match=name):
            adapter.with_tensors({n: t for n, t in adapter.tensors.items() if n != name}).validate(manifest)


CONTRACT: tuple[Callable[[World, Case, Path], None], ...] = (
    off_is_the_base,
    the_twins_adapters_compute_the_same_here,
    our_adapters_compute_the_same_in_the_twin,
    files_hold_the_adapter,
    gradients_are_torchs,
    merging_is_the_twins,
    several_at_once_are_each_alone,
    a_killed_run_resumes_to_the_same_bits,
    another_base_is_refused,
    what_does_not_fit_is_named,
)


def made_trainer(world: World, config: AdapterConfig, run: TrainingConfig = RUN) -> Trainer:
    """A trainer of a fresh adapter on commands."""
    model, data = world.classifier, samples()
    adapter = new_adapter(model.bundle.manifest, config, LABELS, base=model.bundle)
    return Trainer(model.bundle, adapter, objective_for(model, data, adapter.labels, run), run)


def close(ours: np.ndarray, theirs: torch.Tensor | np.ndarray | None) -> bool:
    """Whether two gradients agree, by the norm of their difference; that of a key's bias is zero but for rounding."""
    assert theirs is not None
    wanted = np.asarray(theirs)
    if ours.shape != wanted.shape:
        return False
    return float(np.linalg.norm(ours - wanted)) <= GRADIENT * max(float(np.linalg.norm(wanted)), LEAST)
