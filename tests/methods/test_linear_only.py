"""Methods that have no adapters at convolutions are refused where there is nothing else, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgelora.errors import ConversionError
from tests.convert.bundles import to_bundle
from tests.convert.networks import FLOAT, Net


@pytest.mark.parametrize("method", ["dora", "bitfit", "bottleneck", "full"])
def test_a_base_of_convolutions_alone_is_refused(method: str, tmp_path: Path) -> None:
    net = Net(17)
    net.output(net("Conv", "x", net.weight("first.weight", 4, 3, 1, 1), kernel_shape=[1, 1]), "y")
    model = net.model([("x", FLOAT, ["batch", 3, 5, 6])], [("y", FLOAT, ["batch", 4, 5, 6])])
    with pytest.raises(ConversionError, match="for linear products, and all points are convolutions: leave it out"):
        to_bundle(model, tmp_path, methods=(method,), target_modules=".*")
    assert not list(tmp_path.glob("*.edgelora"))
