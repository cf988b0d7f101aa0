"""Adapters of one-pixel convolutions in their kernels keep outputs and gradients, and form no image of their own."""

from __future__ import annotations

from collections import Counter
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
from edgelora_tools.normalize import normalize
from edgelora_tools.options import ConvertOptions
from edgelora_tools.runner import open_session
from edgelora_tools.sources.torch_export import module_source
from edgelora_tools.training_graphs import training_graph

SIDE, JOINED = 22, 3


class Network(nn.Module):
    """One-pixel convolutions with and without bias and norm, in groups, strided, and on an image of few places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.normed = nn.Sequential(nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.shared = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.strided = nn.Conv2d(8, 5, 1, stride=2)
        self.small = nn.Conv2d(5, 4, 3, stride=2)
        self.few = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.normed(torch.tanh(self.first(x))))
        x = torch.tanh(self.grouped(x + torch.tanh(self.shared(x))))
        return self.few(torch.tanh(self.small(self.strided(x)))).mean((2, 3))


def graph(sizes: dict[int, str]) -> Any:
    torch.manual_seed(0)
    module = Network().eval()
    module.normed[1].running_mean.normal_()  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess]
    axes = {"x": {0: "batch", **sizes}}
    source = module_source(module, {"x": torch.randn(2, 3, SIDE, SIDE)}, "network", dynamic=axes, outputs=["y"])
    model, options = normalize(source.model), ConvertOptions(task="feature-extraction")
    measure_shapes(model)
    base = prune(model, options)
    points = [site.point for site in find_sites(base)]
    return training_graph(base, points, options, COTANGENT, False, False, "train.onnx").model


def feeds_of(model: Any, rank: int, absent: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((3, 3, SIDE, SIDE)), "cotangent.y": rng.standard_normal((3, 4))}
    for x in (v for v in model.graph.inputs if v.name not in feeds):
        own = 0 if str(x.name).startswith(absent) else rank
        named = {d: own // 2 if str(d).endswith("/2") else own for d in dims(x) if isinstance(d, str)}
        feeds[str(x.name)] = rng.standard_normal([d if isinstance(d, int) else named[str(d)] for d in dims(x)]) * 0.3
    return {name: x.astype(np.float32) for name, x in feeds.items()}


@pytest.mark.parametrize("sizes", [{}, {2: "height", 3: "width"}], ids=["static", "open"])
def test_gradients_are_those_of_two_convolutions(sizes, monkeypatch):
    joined = graph(sizes)
    with monkeypatch.context() as without:
        without.setattr(training_graphs, "join_point_kernels", lambda graph: None)
        plain = graph(sizes)
    made = (
        Counter(node.op_type for node in plain.graph)["Conv"] - Counter(node.op_type for node in joined.graph)["Conv"]
    )
    assert made >= 2 * JOINED
    for rank, absent in ((4, "nothing"), (2, "normed"), (2, "first")):
        feeds = feeds_of(joined, rank, absent)
        results = []
        for model in (joined, plain):
            with open_session(model) as session:
                names = sorted(y.name for y in session.get_outputs())
                results.append(dict(zip(names, session.run(names, feeds), strict=True)))
        one, other = results
        assert one.keys() == other.keys() and len(one) == 14
        for name, y in other.items():
            np.testing.assert_allclose(one[name], y, rtol=0, atol=1e-5 * np.abs(y).max(initial=1e-3), err_msg=name)
