"""Small images in rows keep outputs and gradients; convolutions of one pixel are products then."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgelora_tools import training_graphs
from edgelora_tools.gradients.shapes import dims
from edgelora_tools.graphs import prune
from edgelora_tools.insertion import find_sites
from edgelora_tools.losses import COTANGENT
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.methods import METHODS
from edgelora_tools.normalize import normalize
from edgelora_tools.options import ConvertOptions
from edgelora_tools.runner import open_session
from edgelora_tools.sources.torch_export import module_source
from edgelora_tools.training_graphs import training_graph

BATCH, SIDE = 3, 5
OPTIONS = ConvertOptions(task="feature-extraction")


class Network(nn.Module):
    """An inverted residual, a gate of the image's mean, numbers of channels, two convolutions of one image, and a mean;
    or the image. Three of one pixel are no products: in groups, with a stride, with an edge of zeros.
    """

    def __init__(self, axes: int, pooled: bool) -> None:
        super().__init__()
        self.pooled, self.axes = pooled, list(range(2, 2 + axes))
        convolution, norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
        self.stem = convolution(3, 6, 3, padding=1)
        self.wide = nn.Sequential(convolution(6, 8, 1, bias=False), norm(8))
        self.depth = convolution(8, 8, 3, padding=1, groups=2)
        self.narrow = convolution(8, 6, 1)
        self.less, self.more = convolution(6, 2, 1), convolution(2, 6, 1)
        self.scale = nn.Parameter(torch.rand(6, *[1] * axes) + 0.5)
        self.last, self.beside = convolution(6, 7, 1), convolution(6, 7, 1)
        self.grouped = convolution(6, 6, 1, groups=2)
        self.strided, self.edged = convolution(7, 7, 1, stride=2), convolution(7, 7, 1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.stem(x))
        y = nn.functional.relu6(self.depth(nn.functional.relu6(self.wide(x))))
        x = x + self.narrow(y)
        gate = torch.sigmoid(self.more(torch.relu(self.less(x.mean(self.axes, keepdim=True)))))
        x = self.grouped(x * gate * self.scale + x)
        x = nn.functional.relu6(self.last(x)) * torch.tanh(self.beside(x))
        x = torch.relu(self.edged(self.strided(x)))
        return x.mean(self.axes) if self.pooled else x


@cache
def base_of(axes: int, pooled: bool, size: int, batch: int | None) -> Any:
    torch.manual_seed(0)
    module = Network(axes, pooled).eval()
    module.wide[1].running_mean.normal_()  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess]
    x = torch.randn(batch or 2, 3, *[size] * axes)
    source = module_source(module, {"x": x}, "network", dynamic={"x": {} if batch else {0: "batch"}}, outputs=["y"])
    model = normalize(source.model)
    measure_shapes(model)
    return prune(model, OPTIONS)


def graph(
    axes: int, pooled: bool, method: str = "lora", dropout: bool = False, batch: int | None = None, size: int = SIDE
) -> Any:
    base = base_of(axes, pooled, size, batch)
    points = [site.point for site in find_sites(base)]
    made = training_graph(base, points, OPTIONS, COTANGENT, dropout, False, "train.onnx", method=METHODS[method])
    return made.model


def feeds_of(model: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    feeds: dict[str, np.ndarray] = {}
    for x in model.graph.inputs:
        shape = [d if isinstance(d, int) else BATCH if d == "batch" else 4 for d in dims(x)]
        shape = [2 if str(d).endswith("/2") else n for d, n in zip(dims(x), shape, strict=True)]
        if x.dtype.numpy() == np.uint8:
            feeds[x.name] = rng.integers(0, 2, shape).astype(np.uint8)
        else:
            feeds[x.name] = (rng.standard_normal(shape) * (1.0 if x.name == "x" else 0.4)).astype(np.float32)
    return feeds


def results(model: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with open_session(model) as session:
        names = [y.name for y in session.get_outputs()]
        return {name: np.asarray(y) for name, y in zip(names, session.run(names, feeds), strict=True)}


def read_by_convolutions(model: Any) -> set[str]:
    """The kernels that convolutions take as they are."""
    given = {*model.graph.inputs, *model.graph.initializers.values()}
    return {node.inputs[1].name for node in model.graph if node.op_type == "Conv" and node.inputs[1] in given}


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph]


def in_images(monkeypatch: pytest.MonkeyPatch, *what: Any, **more: Any) -> Any:
    with monkeypatch.context() as without:
        without.setattr(training_graphs, "images_in_rows", lambda graph: None)
        return graph(*what, **more)


@pytest.mark.parametrize(
    ("axes", "pooled", "method", "dropout", "batch"),
    [
        (2, True, "lora", False, None),
        (2, False, "lora", True, None),
        (1, False, "lora", False, None),
        (3, True, "lora", False, None),
        (2, True, "ia3", False, None),
        (2, True, "lora-bias", False, None),
        (2, True, "lora", False, 1),  # the gate, of one place, is one number for each channel then
        (1, False, "lora", True, 1),
    ],
)
def test_gradients_are_those_of_images(axes, pooled, method, dropout, batch, monkeypatch):
    what = (axes, pooled, method, dropout, batch)
    rows, images = graph(*what), in_images(monkeypatch, *what)
    assert operators(rows).count("Conv") < operators(images).count("Conv")
    feeds = feeds_of(images)
    made, wanted = results(rows, feeds), results(images, feeds)
    assert made.keys() == wanted.keys() and len(made) > 4
    for name, y in wanted.items():
        np.testing.assert_allclose(made[name], y, rtol=0, atol=2e-5 * np.abs(y).max(initial=1e-3), err_msg=name)


def test_a_kernels_gradient_is_turned_once_and_its_factors_lie_along_rows():
    model = graph(2, True)
    made = {node.op_type: [] for node in model.graph}
    for node in model.graph:
        made[node.op_type].append([x.producer() for x in node.inputs if x is not None])
    twice = [
        1
        for (back,) in made["Transpose"]
        if back is not None and back.op_type == "Reshape" and (first := back.inputs[0].producer()) is not None
        if first.op_type == "Transpose" and back.inputs[1].const_value.numpy()[2:].tolist() == [1, 1]
    ]
    assert not twice
    factors = [v for v in model.graph.initializers.values() if "wide.0.lora_B.factors" in v.name]
    assert [list(v.const_value.shape) for v in factors] == [[8]] and len(factors[0].uses()) == 2


def test_convolutions_of_one_pixel_are_products(monkeypatch):
    """Those of more pixels stay, and of one in groups, with a stride or an edge: of every one W, A and B forward."""
    stay = {"stem", "depth", "grouped", "strided", "edged"}
    kernels = {f"{name}.{kernel}" for name in stay for kernel in ("weight", "lora_A", "lora_B")}
    assert read_by_convolutions(graph(2, True)) == kernels
    assert read_by_convolutions(in_images(monkeypatch, 2, True)) > kernels | {
        "last.weight",
        "last.lora_A",
        "last.lora_B",
    }


def test_images_of_many_places_stay(monkeypatch):
    """But for the gate's, of one place: its two convolutions with A and B, forward and backward."""
    made, plain = operators(graph(2, True, size=15)), operators(in_images(monkeypatch, 2, True, size=15))
    assert plain.count("Conv") - made.count("Conv") == 2 * (3 + 3)
