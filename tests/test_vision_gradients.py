"""Whole vision networks: gradients of adapters at every dense convolution and product equal torch's.

MobileNetV2 and FastestDet have their real weights. Torch computes in float64: in float32 a rectifier's kink makes its
own gradients jump, by more than the tolerance, and ours may be as far from the truth as they are.
"""

from __future__ import annotations

import importlib
import itertools
import os
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from edgelora.errors import EdgeLoraError
from edgelora_tools.certify.torch_oracle import differentiate, in_double, reachable
from edgelora_tools.graphs import prune
from edgelora_tools.insertion import find_sites
from edgelora_tools.losses import COTANGENT
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.normalize import normalize
from edgelora_tools.options import ConvertOptions
from edgelora_tools.recipes import fetch, load_recipe, network
from edgelora_tools.runner import open_session
from edgelora_tools.sources.torch_export import module_source
from edgelora_tools.training_graphs import training_graph
from tests.convert.bundles import relative

DATA = Path(os.environ.get("EDGELORA_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIDE, RANK, TOLERANCE = 96, 4, 1e-4


def mobilenetv2() -> Any:
    try:
        folder = fetch(load_recipe("mobilenetv2"))
    except EdgeLoraError as error:
        pytest.skip(f"the recipe's model cannot be fetched: {error}")
    return network("mobilenetv2").features(folder)[0], {"image": torch.randn(3, 3, SIDE, SIDE)}


def fastestdet() -> Any:
    if not (DATA / "fastestdet.zip").is_file():
        pytest.skip(f"{DATA / 'fastestdet.zip'} is absent: set EDGELORA_DATA")
    with TemporaryDirectory() as folder, zipfile.ZipFile(DATA / "fastestdet.zip") as archive:
        archive.extract("FastestDet.pth", folder)
        return network("fastestdet").maps(Path(folder), SIDE)[:2]


def efficientnet_lite0() -> Any:
    """With random weights, and a normalization whose every channel is off, on or at 6 by six standard deviations.

    Of 10⁶ rectifiers some lie so near to a kink that float32 takes the wrong side, and a gradient is a hundredth off.
    """
    module = network("efficientnet-lite0").Features()
    assert sum(p.numel() for p in module.parameters()) == 3_371_008
    picture = torch.randn(2, 3, 64, 64)
    parts = list(module.modules())
    with torch.no_grad():
        for part in parts:
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = None
        for before, after in itertools.pairwise(parts):
            if isinstance(before, torch.nn.BatchNorm2d) and isinstance(after, torch.nn.ReLU6):
                before.weight.fill_(0.5)
                before.bias.copy_(torch.tensor([-3.0, 9.0, 3.0, 3.0])[torch.randint(4, before.bias.shape)])
        module(picture)
    return module.eval(), {"image": picture}


def of_zoo(name: str) -> Any:
    family, _, function = name.partition(":")
    return getattr(importlib.import_module(f"edgelora_tools.zoo.{family}"), function)()[:2]


ZOO = (
    "convnets:resnet18",
    "convnets:unet_bilinear",
    "vision:convnext",
    "vision:swin",
)


@pytest.mark.parametrize("name", ["mobilenetv2", "fastestdet", "efficientnet_lite0", *ZOO])
def test_gradients_equal_torchs(name):
    torch.manual_seed(0)
    module, inputs = of_zoo(name) if ":" in name else globals()[name]()
    source = module_source(module, inputs, name, "torchscript")
    assert source.original is not None
    model, options = normalize(source.model.clone()), ConvertOptions(task="feature-extraction")
    measure_shapes(model)
    base, feeds = prune(model, options), {n: x.numpy() for n, x in inputs.items()}
    there = reachable(source.original, [site.point for site in find_sites(base)], feeds)
    points = [site.point for site in find_sites(base) if site.point.groups == 1 and site.point.id in there]
    assert points
    trained = training_graph(base, points, options, COTANGENT, False, False, "train.onnx")
    rng = np.random.default_rng(0)
    adapter: dict[str, np.ndarray] = {}
    for point in points:
        a, b = rng.standard_normal(point.shape_a(RANK)), rng.standard_normal(point.shape_b(RANK))
        adapter |= {point.input_a: a / point.in_features, point.input_b: 0.005 * b}
    adapter = {n: x.astype(np.float32) for n, x in adapter.items()}
    with torch.no_grad():
        outputs = {n: y for n, y in source.original(feeds).items() if y.is_floating_point()}
    cotangents = {n: rng.standard_normal(y.shape).astype(np.float32) for n, y in outputs.items()}
    with open_session(trained.model) as session:
        fed = feeds | adapter | {f"cotangent.{n}": c for n, c in cotangents.items()}
        names = [y.name for y in session.get_outputs()]
        made = session.run(names, {x.name: fed[x.name] for x in session.get_inputs()})
        ours = {n.removeprefix("grad."): np.asarray(g) for n, g in zip(names, made, strict=True)}
    exact = differentiate(in_double(source.original), points, adapter, feeds, cotangents).gradients
    theirs = differentiate(source.original, points, adapter, feeds, cotangents).gradients
    assert ours.keys() == exact.keys()
    for tensor, wanted in exact.items():
        allowed = max(TOLERANCE, 2 * relative(theirs[tensor], wanted))
        assert relative(ours[tensor], wanted) < allowed, tensor
