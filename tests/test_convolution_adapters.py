"""LoRA on convolutions: outputs and gradients of whole networks equal PEFT's, and so do the files."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from edgelora.adapter import absent_adapter, new_adapter, read_adapter, write_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.errors import ConfigError
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.torch_export import module_source

SCALE = 2.0


class Images(nn.Module):
    """2-D: strides, groups, padding, BatchNorm behind convolutions, a 1×1, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, (3, 1), padding=(1, 0), groups=4)
        self.point = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.norm(self.stem(x)))
        x = nn.functional.silu(self.point(self.grouped(x)))
        return self.head(x.mean((2, 3)))


class Sounds(nn.Module):
    """1-D: a stride longer than the kernel, asymmetric sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 6, 5, stride=3, padding=2)
        self.second = nn.Conv1d(6, 4, 2, stride=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.sigmoid(self.first(x)))


class Volumes(nn.Module):
    """3-D."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(2, 4, 3, padding=1)
        self.second = nn.Conv3d(4, 3, (1, 2, 2), stride=(1, 2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class Paddings(nn.Module):
    """2-D and then 1-D: padding by name, with kernels of even sides too; depthwise, and 1×1 in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Conv2d(3, 4, (2, 4), padding="same")
        self.depthwise = nn.Conv2d(4, 8, 5, stride=2, padding=2, groups=4)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.line = nn.Conv1d(8, 4, 4, padding="same")
        self.single = nn.Conv1d(4, 4, 3, stride=2, padding=1, groups=4)
        self.valid = nn.Conv1d(4, 3, 3, padding="valid")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.depthwise(torch.tanh(self.even(x))))
        x = torch.tanh(self.grouped(x)).flatten(2)
        return self.valid(torch.tanh(self.single(torch.tanh(self.line(x)))))


class Dilated(nn.Module):
    """2-D and then 1-D: dilation, and padding with other values than zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 4, 3, padding=2, dilation=2)
        self.same = nn.Conv2d(4, 5, (3, 2), padding="same", dilation=(2, 3))
        self.reflected = nn.Conv2d(5, 4, 3, padding=1, padding_mode="reflect")
        self.around = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", stride=2)
        self.line = nn.Conv1d(4, 5, 3, padding=2, dilation=2)
        self.repeated = nn.Conv1d(5, 3, 3, padding=1, padding_mode="replicate")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.wide, self.same, self.reflected, self.around):
            x = torch.tanh(layer(x))
        return self.repeated(torch.tanh(self.line(x.flatten(2))))


NETWORKS = {"images": (Images, (3, 9, 7)), "sounds": (Sounds, (2, 23)), "volumes": (Volumes, (2, 3, 4, 6))}
OTHERS = {"paddings": (Paddings, (3, 9, 8)), "dilated": (Dilated, (3, 9, 8))}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = (NETWORKS | OTHERS)[name]
    module = build()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            assert child.running_mean is not None and child.running_var is not None
            child.running_mean.normal_()
            child.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(child.weight, 1.0, 0.3)
    return module.eval(), torch.randn(2, *shape)


def to_bundle(module: nn.Module, x: torch.Tensor, folder: Any) -> Bundle:
    source = module_source(module, {"x": x}, "network", outputs=["y"])
    options = ConvertOptions(task="feature-extraction", target_modules=".*")
    convert(source, folder / "network.edgelora", options)
    return Bundle.open(folder / "network.edgelora")


@pytest.mark.parametrize("name", [*NETWORKS, "paddings"])
def test_outputs_gradients_and_files_equal_pefts(name, tmp_path):
    module, sample = network(name)
    bundle, rng = to_bundle(module, sample, tmp_path), np.random.default_rng(1)
    points = [point.id for point in bundle.manifest.points]
    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) or hasattr(m, "kernel_size")]
    assert points == linear
    config = LoraConfig(r=4, lora_alpha=4 * SCALE)
    adapter = new_adapter(bundle.manifest, config, rng=rng)
    tensors = {n: rng.standard_normal(t.shape).astype(np.float32) * np.float32(0.3) for n, t in adapter.tensors.items()}
    adapter = adapter.with_tensors(tensors)
    adapter.validate(bundle.manifest)
    write_adapter(adapter, tmp_path / "adapter")
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(module), tmp_path / "adapter", is_trainable=True).eval()
    x = torch.randn(3, *sample.shape[1:])
    base: Any = wrapped.base_model
    y = base(x)
    ours = bundle.forward.run({"x": x.numpy(), **adapter.feeds(bundle.manifest)})["y"]
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=1e-4, atol=1e-5)

    cotangent = rng.standard_normal(y.shape).astype(np.float32)
    (y * torch.from_numpy(cotangent)).sum().backward()
    graph = bundle.graph(bundle.training("cotangent", dropout=False).file)
    grads = graph.run({"x": x.numpy(), **adapter.feeds(bundle.manifest), "cotangent.y": cotangent})
    modules = dict(base.model.named_modules())
    for point in bundle.manifest.points:
        for part in ("lora_A", "lora_B"):
            wanted = getattr(modules[point.id], part)["default"].weight.grad.numpy()
            got = grads[f"grad.{point.id}.{part}"] * (SCALE if part == "lora_B" else 1.0)
            got = got if point.kernel else got.T
            assert np.linalg.norm(got - wanted) < 1e-4 * np.linalg.norm(wanted), (point.id, part)

    wrapped.save_pretrained(tmp_path / "peft")
    theirs, mine = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("peft", "adapter"))
    assert {n: t.tolist() for n, t in theirs.items()} == {n: t.tolist() for n, t in mine.items()}
    again = read_adapter(tmp_path / "peft", bundle.manifest, accept_base=True)
    again.validate(bundle.manifest)
    assert all(np.array_equal(again.tensors[n], t) for n, t in tensors.items())


def test_dilated_and_otherwise_padded_convolutions_are_the_merged_networks(tmp_path):
    """PEFT merges as we do. Its adapter beside such a convolution is neither dilated nor padded as the base is."""
    module, sample = network("dilated")
    bundle, rng = to_bundle(module, sample, tmp_path), np.random.default_rng(1)
    adapter = new_adapter(bundle.manifest, LoraConfig(r=4, lora_alpha=4 * SCALE), rng=rng)
    assert [point.id for point in bundle.manifest.points] == [name for name, _ in module.named_children()]
    adapter = adapter.with_tensors(
        {n: rng.standard_normal(t.shape).astype(np.float32) * np.float32(0.3) for n, t in adapter.tensors.items()}
    )
    write_adapter(adapter, tmp_path / "adapter")
    x = torch.randn(3, *sample.shape[1:])
    merged: Any = peft.PeftModel.from_pretrained(copy.deepcopy(module), tmp_path / "adapter").merge_and_unload()
    ours = bundle.forward.run({"x": x.numpy(), **adapter.feeds(bundle.manifest)})["y"]
    np.testing.assert_allclose(ours, merged(x).detach().numpy(), rtol=1e-4, atol=1e-5)

    learned = {n: torch.tensor(t, dtype=torch.float64, requires_grad=True) for n, t in adapter.tensors.items()}
    weights = {name: value.double() for name, value in module.state_dict().items()}
    for point in bundle.manifest.points:
        a, b = learned[f"{point.id}.lora_A"], learned[f"{point.id}.lora_B"]
        weights[f"{point.id}.weight"] = weights[f"{point.id}.weight"] + SCALE * torch.einsum(
            "or,ri...->oi...", b.flatten(1), a
        )
    y = torch.func.functional_call(copy.deepcopy(module).double(), weights, (x.double(),))
    cotangent = rng.standard_normal(y.shape).astype(np.float32)
    (y * torch.from_numpy(cotangent)).sum().backward()
    graph = bundle.graph(bundle.training("cotangent", dropout=False).file)
    grads = graph.run({"x": x.numpy(), **adapter.feeds(bundle.manifest), "cotangent.y": cotangent})
    for name, tensor in learned.items():
        assert tensor.grad is not None
        got = grads[f"grad.{name}"] * (SCALE if name.endswith("lora_B") else 1.0)
        assert np.linalg.norm(got - tensor.grad.numpy()) < 1e-4 * np.linalg.norm(tensor.grad.numpy()), name


def test_an_absent_adapter_is_the_base(tmp_path):
    module, sample = network("images")
    bundle = to_bundle(module, sample, tmp_path)
    config = LoraConfig(r=4, target_modules=("stem",))
    zero = new_adapter(bundle.manifest, config)
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float32)
    absent = bundle.forward.run({"x": x, **zero.with_tensors({}).feeds(bundle.manifest)})["y"]
    assert np.isfinite(absent).all()
    with torch.no_grad():
        np.testing.assert_allclose(absent, module(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(absent, bundle.forward.run({"x": x, **zero.feeds(bundle.manifest)})["y"])


@pytest.mark.parametrize("name", NETWORKS)
def test_points_without_an_adapter_leave_the_gradients_of_the_others(name, tmp_path):
    """Rank 0 at all points but one is the same as a B of zeros there."""
    module, sample = network(name)
    bundle, rng = to_bundle(module, sample, tmp_path), np.random.default_rng(1)
    zero = new_adapter(bundle.manifest, LoraConfig(r=4)).tensors
    x = rng.standard_normal(sample.shape).astype(np.float32)
    shape = bundle.forward.run({"x": x, **absent_adapter(bundle.manifest)})["y"].shape
    feeds = {"x": x, "cotangent.y": rng.standard_normal(shape).astype(np.float32)}
    graph = bundle.graph(bundle.training("cotangent", dropout=False).file)
    for point in bundle.manifest.points:
        names = (point.input_a, point.input_b)
        own = {n: rng.standard_normal(zero[n].shape).astype(np.float32) for n in names}
        wanted = graph.run({**feeds, **zero, **own})
        got = graph.run({**feeds, **absent_adapter(bundle.manifest), **own})
        for n in names:
            np.testing.assert_allclose(got[f"grad.{n}"], wanted[f"grad.{n}"], rtol=1e-4, atol=1e-5)


def test_a_rank_that_does_not_suit_the_groups_is_refused_by_name(tmp_path):
    module, sample = network("images")
    bundle = to_bundle(module, sample, tmp_path)
    with pytest.raises(ConfigError, match=r"grouped is a convolution in 4 groups and its rank 6"):
        new_adapter(bundle.manifest, LoraConfig(r=6))
    adapter = new_adapter(bundle.manifest, LoraConfig(r=6, rank_pattern={"grouped": 8}))
    assert adapter.tensors["grouped.lora_B"].shape == (12, 2, 1, 1)
    adapter.validate(bundle.manifest)


def test_convolutions_in_groups_must_be_asked_for(tmp_path):
    module, sample = network("images")
    source = module_source(module, {"x": sample}, "network", outputs=["y"])
    made = convert(source, tmp_path / "default.edgelora", ConvertOptions(task="feature-extraction"))
    assert [point.id for point in made.points] == ["stem", "point", "head"]
