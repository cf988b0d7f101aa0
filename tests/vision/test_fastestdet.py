"""FastestDet's network in torch is the published ONNX file."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest
import torch

from edgelora_tools.recipes import recipe_folder

DATA = Path(os.environ.get("EDGELORA_DATA", Path(__file__).parents[3] / "shared" / "data"))
ZIP = DATA / "fastestdet.zip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not ZIP.is_file():
        pytest.skip(f"{ZIP} is absent: FastestDet's weights are not here")
    made = tmp_path_factory.mktemp("fastestdet")
    with zipfile.ZipFile(ZIP) as archive:
        archive.extractall(made)
    return made


def network() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastestdet", recipe_folder() / "fastestdet" / "network.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_network_is_the_published_file(folder: Path) -> None:
    module, inputs, _ = network().detector(folder)
    published = ort.InferenceSession(folder / "FastestDet.onnx")
    with torch.no_grad():
        for image in inputs["images"].split(1):
            expected = np.asarray(published.run(None, {published.get_inputs()[0].name: image.numpy()})[0])
            np.testing.assert_allclose(module(image).numpy(), expected, atol=5e-5 * np.abs(expected).max())


def test_the_maps_are_what_its_outputs_see(folder: Path) -> None:
    made = network()
    module, inputs, _ = made.detector(folder)
    with torch.no_grad():
        maps = made.maps(folder)[0](inputs["images"])
        whole = module(inputs["images"])
        head = module.detect_head
        assert maps.shape == (2, 288, 22, 22)
        boxes = head.reg_layers.conv5x5[3:](maps[:, 96:192])
        torch.testing.assert_close(boxes, whole[:, 1:5])
        torch.testing.assert_close(head.cls_layers.conv5x5[3:](maps[:, 192:]).softmax(1), whole[:, 5:])
