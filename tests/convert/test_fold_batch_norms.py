"""BatchNorm in convolutions: no graph computes it, and outputs, gradients and merged models are as they were."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from edgelora import IA3Config, LoraConfig
from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora_tools import graph_sets, graphs
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.interop.merging import merge, unmerge
from edgelora_tools.interop.plain_onnx import save_plain
from edgelora_tools.sources.torch_export import module_source
from tests.convert.bundles import relative

CLOSE = 1e-5


class Network(nn.Module):
    """Norms behind convolutions with and without bias, in groups, called twice, two in a row, and none to fold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.after_stem = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.after_depthwise = nn.BatchNorm2d(8)
        self.shared = nn.Conv2d(8, 8, 1)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 1, bias=False)
        self.of_branch = nn.BatchNorm2d(8)
        self.of_sum = nn.BatchNorm2d(8)
        self.read_twice = nn.Conv2d(8, 8, 1)
        self.unfolded = nn.BatchNorm2d(8)
        self.before = nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.after_stem(self.stem(x)))
        x = torch.tanh(self.after_depthwise(self.depthwise(x)))
        x = torch.tanh(self.second(self.shared(self.first(self.shared(x)))))
        x = torch.tanh(self.of_sum(self.of_branch(self.branch(x)) + self.read_twice(x)))
        y = self.read_twice(x)
        x = self.before(y * self.unfolded(y))
        for conv, norm in zip(self.blocks, self.norms, strict=True):
            x = x + torch.tanh(norm(conv(x)))
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    module = Network().eval()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            assert child.running_mean is not None and child.running_var is not None
            child.running_mean.normal_()
            child.running_var.uniform_(0.2, 3.0)
            nn.init.normal_(child.weight)
            nn.init.normal_(child.bias)
    return module


def to_bundle(module: nn.Module, path, targets=r".*") -> Bundle:
    source = module_source(module, {"x": torch.randn(2, 3, 9, 7)}, "network", outputs=["y"])
    options = ConvertOptions(
        task="feature-extraction", target_modules=targets, methods=("ia3", "lora-bias"), train_last=(2,)
    )
    convert(source, path, options)
    return Bundle.open(path)


@pytest.fixture(scope="module")
def bundle(module, tmp_path_factory):
    return to_bundle(module, tmp_path_factory.mktemp("folded") / "network.edgelora")


@pytest.fixture(scope="module")
def as_exported(module, tmp_path_factory):
    """The same without the pass."""
    with pytest.MonkeyPatch.context() as patch:
        for where in (graphs, graph_sets):
            patch.setattr(where, "fold_batch_norms", lambda model, op: None)
        return to_bundle(module, tmp_path_factory.mktemp("exported") / "network.edgelora")


def norms(bundle: Bundle, file: str) -> int:
    graph = onnx.load(bundle.path / file, load_external_data=False).graph
    return sum(node.op_type == "BatchNormalization" for node in graph.node)


def moved(bundle: Bundle, config, seed: int = 1):
    """An adapter away from its first value."""
    rng = np.random.default_rng(seed)
    fresh = new_adapter(bundle.manifest, config, rng=rng, base=bundle)
    return fresh.with_tensors(
        {n: (t + 0.2 * rng.standard_normal(t.shape)).astype(np.float32) for n, t in fresh.tensors.items()}
    )


CONFIGS = {
    "lora": LoraConfig(r=8, lora_alpha=12),
    "ia3": IA3Config(target_modules=("stem", "depthwise", "shared", "branch"), feedforward_modules=("branch",)),
    "lora-bias": LoraConfig(r=8, bias="lora_only", target_modules=("stem", "depthwise", "shared", "branch")),
}


def test_every_foldable_norm_is_folded(bundle):
    files = {"forward.onnx": 2, "train-cotangent.onnx": 2, "forward-lora-bias.onnx": 2}
    assert {file: norms(bundle, file) for file in files} == files
    prefix = bundle.manifest.prefixes[0]
    assert norms(bundle, prefix.file) == 2 and norms(bundle, prefix.forward) == 0
    assert norms(bundle, "forward-ia3.onnx") == 10  # between the two stands a product


@pytest.mark.parametrize("method", CONFIGS)
def test_outputs_and_gradients_are_those_of_the_norm(method, bundle, as_exported):
    adapter = moved(bundle, CONFIGS[method])
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 3, 9, 7)).astype(np.float32)}
    made = []
    for one in (bundle, as_exported):
        fed = feeds | one.feeds(adapter)
        y = one.forward_in(method).run(fed)["y"]
        record = one.training("cotangent", dropout=False, graphs=method)
        gradients = one.graph(record.file).run(fed | {"cotangent.y": np.cos(y)})
        made.append({"y": y} | gradients)
    folded, wanted = made
    assert folded.keys() == wanted.keys()
    for name, x in wanted.items():
        assert relative(folded[name], x) < CLOSE or np.abs(x).max() < 1e-6, name


@pytest.mark.parametrize("method", CONFIGS)
def test_a_merged_model_computes_the_same_and_the_way_back_is_the_base(method, bundle, tmp_path):
    adapter = moved(bundle, CONFIGS[method])
    x = np.random.default_rng(0).standard_normal((3, 3, 9, 7)).astype(np.float32)

    def run(model, name):
        save_plain(model, tmp_path / name)
        session = ort.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(["y"], {"x": x})[0])

    merged = merge(bundle, adapter)
    assert merged.originals
    wanted = bundle.forward_in(method).run({"x": x} | bundle.feeds(adapter))["y"]
    assert relative(run(merged.model, "merged.onnx"), wanted) < CLOSE
    back, base = run(unmerge(merged), "back.onnx"), run(merge(bundle, None).model, "base.onnx")
    assert relative(back, base) < 1e-6  # a bias that is an input of the method's graph is scaled when that runs
    assert relative(base, wanted) > 1e-2
