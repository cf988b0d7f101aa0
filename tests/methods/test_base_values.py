"""The base's own values: what the bundle tells of them is what the model holds, and what fed back gives its bits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgelora import Bundle, new_adapter
from edgelora.adapter import absent_adapter
from edgelora.errors import ConfigError
from edgelora.manifest import NORMALIZATIONS
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.sources.torch_export import module_source
from tests.device import tiny
from tests.methods.cases import CASES
from tests.methods.world import World


def test_every_weight_and_bias_is_told(world: World):
    """Of all points and of all normalizations, as torch has them."""
    bundle, modules = world.features.bundle, dict(tiny.module().named_modules())
    manifest = bundle.manifest
    points = (*manifest.points, *manifest.points_in("layer-norm"))
    assert sum(point.op in NORMALIZATIONS for point in points) == 5 and len(points) == 13
    assert all(point.bias for point in points)
    names = [f"{point.id}.{kind}" for point in points for kind in ("base_weight", "base_bias")]
    told = bundle.values(names)
    assert list(told) == names
    for point in points:
        module = modules[point.id]
        np.testing.assert_array_equal(told[f"{point.id}.base_weight"], module.weight.detach().numpy().T)
        np.testing.assert_array_equal(told[f"{point.id}.base_bias"], module.bias.detach().numpy())


class Mixed(torch.nn.Module):
    """Matrices that lie in the file either way round, a product without a bias, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.window = torch.nn.Conv1d(3, 4, 2)
        self.rows = torch.nn.Linear(5, 6)
        self.bare = torch.nn.Linear(6, 5, bias=False)
        self.norm = torch.nn.LayerNorm(5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.window(x)
        return self.norm(self.bare(torch.tanh(self.rows(y.mean(1)))))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mixed, Bundle]:
    torch.manual_seed(0)
    module = Mixed().eval()
    source = module_source(module, {"x": torch.randn(2, 3, 6)}, "mixed", "torchscript", outputs=["y"])
    path = tmp_path_factory.mktemp("mixed") / "mixed.edgelora"
    options = ConvertOptions(
        task="feature-extraction", target_modules=("window", "rows", "bare"), methods=("layer-norm",)
    )
    convert(source, path, options)
    return module, Bundle.open(path)


def test_values_have_one_orientation(mixed: tuple[Mixed, Bundle]):
    module, bundle = mixed
    assert {point.id: point.bias for point in bundle.manifest.points} == {"window": True, "rows": True, "bare": False}
    told = bundle.values(["window.base_weight", "rows.base_weight", "bare.base_weight", "norm.base_weight"])
    np.testing.assert_array_equal(told["window.base_weight"], module.window.weight.detach().numpy())
    np.testing.assert_array_equal(told["rows.base_weight"], module.rows.weight.detach().numpy().T)
    np.testing.assert_array_equal(told["bare.base_weight"], module.bare.weight.detach().numpy().T)
    np.testing.assert_array_equal(told["norm.base_weight"], module.norm.weight.detach().numpy())
    assert all(value.flags.c_contiguous for value in told.values())


def test_what_is_not_told_is_named(mixed: tuple[Mixed, Bundle], tmp_path: Path):
    _, bundle = mixed
    with pytest.raises(ConfigError, match=r"does not tell bare\.base_bias, elsewhere\.base_weight"):
        bundle.values(["rows.base_bias", "bare.base_bias", "elsewhere.base_weight"])
    older = Bundle(bundle.path, replace(bundle.manifest, values=None), bundle.settings)
    assert older.values([]) == {}
    with pytest.raises(ConfigError, match="convert the model again"):
        older.values(["rows.base_bias"])


def test_a_base_of_codes_tells_what_is_real(tmp_path: Path):
    path = tiny.write_bundle(
        tiny.module(), "feature-extraction", tmp_path / "int8.edgelora", quantize="int8", methods=("layer-norm",)
    )
    bundle = Bundle.open(path)
    coded = [p.id for p in bundle.manifest.points if p.id not in bundle.manifest.source["float32"]]
    assert coded and all(point.bias for point in bundle.manifest.points)
    with pytest.raises(ConfigError, match="holds codes in its place"):
        bundle.values([f"{coded[0]}.base_weight"])
    modules = dict(tiny.module().named_modules())
    told = bundle.values([f"{coded[0]}.base_bias"])[f"{coded[0]}.base_bias"]
    np.testing.assert_array_equal(told, modules[coded[0]].bias.detach().numpy())
    assert set(bundle.values(list(absent_adapter(bundle.manifest, "layer-norm", bundle))))


def test_methods_that_ask_say_so_where_nobody_answers(world: World):
    manifest = world.features.bundle.manifest
    for name in ("dora", "layer-norm"):
        with pytest.raises(ConfigError, match="give base=bundle"):
            new_adapter(manifest, CASES[name].ours)
    with pytest.raises(ConfigError, match="give base=bundle"):
        absent_adapter(manifest, "layer-norm")


def test_a_place_without_an_adapter_has_the_bases_values(world: World):
    """An adapter at one normalization alone; where it is as it began, the whole is the base, bit for bit."""
    config = replace(CASES["layer-norm"].ours, layers_to_transform=(0,))
    fresh = new_adapter(world.features.bundle.manifest, config, base=world.features.bundle)
    assert len(fresh.points) == 2
    np.testing.assert_array_equal(world.hidden(fresh), world.hidden(None))
    moved = fresh.with_tensors({name: 2 * tensor for name, tensor in fresh.tensors.items()})
    assert np.abs(world.hidden(moved) - world.hidden(None)).max() > 1e-2


def test_the_weights_are_not_written_twice(world: World, tmp_path: Path):
    path = tiny.write_bundle(tiny.module(), "feature-extraction", tmp_path / "plain.edgelora")
    own, plain = (Bundle.open(p).manifest.files["weights.bin"].size for p in (world.features.bundle.path, path))
    assert own == plain
    shutil.rmtree(path)
