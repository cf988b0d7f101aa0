"""Which models get a graph for mixed batches, and that it computes what the inference graph does for each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgelora.adapter import absent_adapter
from tests.convert.bundles import relative, to_bundle
from tests.convert.networks import FLOAT, Net


def linear(shape: Any, flatten: bool = False):
    net = Net(21)
    x = net("Reshape", "x", net.const([-1, 6], np.int64)) if flatten else "x"
    net.output(net("Tanh", net("MatMul", x, net.weight("layer.weight", 6, 5))), "out")
    return net.model([("x", FLOAT, shape)], [("out", FLOAT, None)], check=False)


@pytest.mark.parametrize(
    "shape", [["batch", 6], ["batch", "sequence", 6], ["batch", 3, "sequence", 6], ["batch", 2, 3, "sequence", 6]]
)
def test_rows_have_their_own(shape, tmp_path):
    bundle = to_bundle(linear(shape), tmp_path)
    assert bundle.manifest.mixed == "mixed.onnx"
    rng = np.random.default_rng(0)
    x = rng.standard_normal([d if isinstance(d, int) else 4 for d in shape]).astype(np.float32)
    stacked = {n: rng.standard_normal((3, *(d or 2 for d in a.shape))).astype(np.float32)
               for n, a in absent_adapter(bundle.manifest).items()}  # fmt: skip
    index = np.array([2, 0, 1, 2])
    got = bundle.graph("mixed.onnx").run({"x": x, **stacked, "adapter_index": index})["out"]
    for row, k in enumerate(index):
        alone = bundle.forward.run({"x": x[row : row + 1], **{n: a[k] for n, a in stacked.items()}})["out"]
        assert relative(got[row : row + 1], alone) < 1e-5


def test_rows_that_are_one_with_positions_have_none(tmp_path):
    assert to_bundle(linear(["batch", "sequence", 6], flatten=True), tmp_path).manifest.mixed is None


def test_a_convolution_has_none(tmp_path):
    net = Net(21)
    net.output(net("Conv", "x", net.weight("layer.weight", 4, 3, 3, 3)), "out")
    proto = net.model([("x", FLOAT, ["batch", 3, 8, 8])], [("out", FLOAT, None)], check=False)
    bundle = to_bundle(proto, tmp_path, target_modules="layer")
    assert bundle.manifest.points and bundle.manifest.mixed is None
    assert not (bundle.path / "mixed.onnx").exists()
