"""FastestDet's network in torch is the published ONNX file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from edgelora.media.images import ImageSettings, read_picture
from edgelora.vision.annotations import read_boxes
from edgelora.vision.boxes import overlaps
from edgelora.vision.detectors import Detector, FastestDet
from edgelora_tools.recipes import network

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


def test_its_own_outputs_find_what_is_there(folder: Path, tmp_path: Path) -> None:
    """Raccoons are none of its classes, but they are objects: boxes lie around most of them."""
    archive = DATA / "raccoon.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} is absent: there are no photographs")
    with zipfile.ZipFile(archive) as photographs:
        photographs.extractall(tmp_path)
    samples = read_boxes(tmp_path / "data" / "test_labels.csv")[:16]
    settings = ImageSettings("images", (352, 352), order="BGR")
    module, _, _ = network("fastestdet").detector(folder)
    found = 0
    for sample in samples:
        picture = read_picture(sample.path)
        placement, pixels = settings.placement(picture), np.empty((1, 3, 352, 352), np.float32)
        settings.put(placement.warp(picture.pixels), pixels[0])
        with torch.no_grad():
            maps = module(torch.from_numpy(pixels)).numpy()
        (seen,) = Detector(FastestDet(activated=True)).find([maps], settings.size, score=0.3)
        truth = np.array([box.corners for box in sample.boxes])
        found += bool((overlaps(truth, placement.boxes_back(seen.boxes)) > 0.5).any())
    assert found >= 12, f"{found} of {len(samples)}"


def test_the_network_is_the_published_file(folder: Path) -> None:
    module, inputs, _ = network("fastestdet").detector(folder)
    published = ort.InferenceSession(folder / "FastestDet.onnx")
    with torch.no_grad():
        for image in inputs["images"].split(1):
            expected = np.asarray(published.run(None, {published.get_inputs()[0].name: image.numpy()})[0])
            np.testing.assert_allclose(module(image).numpy(), expected, atol=5e-5 * np.abs(expected).max())


def test_the_maps_are_what_its_outputs_see(folder: Path) -> None:
    made = network("fastestdet")
    module, inputs, _ = made.detector(folder)
    with torch.no_grad():
        maps = made.maps(folder)[0](inputs["images"])
        whole = module(inputs["images"])
        head = module.detect_head
        assert maps.shape == (2, 288, 22, 22)
        boxes = head.reg_layers.conv5x5[3:](maps[:, 96:192])
        torch.testing.assert_close(boxes, whole[:, 1:5])
        torch.testing.assert_close(head.cls_layers.conv5x5[3:](maps[:, 192:]).softmax(1), whole[:, 5:])
