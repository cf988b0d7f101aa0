"""The speaker encoder's recipe: with the spectrum that it names, its weights know who speaks."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgelora.errors import ConversionError
from edgelora.manifest import TensorSpec
from edgelora.media.sound_inputs import SoundEncoder
from edgelora_tools.recipes import fetch, load_recipe, network
from edgelora_tools.sound_features import SoundOptions, sound_preprocessing
from tests.convert.bundles import ROOT

pytest.importorskip("torch")

import torch

ZIP = Path(os.environ.get("EDGELORA_DATA", ROOT.parent / "shared" / "data")) / "fsdd.zip"
DIGITS = range(5)
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def test_every_speaker_is_nearest_to_its_own_voice(tmp_path: Path):
    """Two recordings of each of five digits enrol a speaker; the next one of each is asked for."""
    if not ZIP.is_file():
        pytest.skip(f"{ZIP.name} is absent: set EDGELORA_DATA")
    recipe = load_recipe("speaker-encoder")
    try:
        module, sample = network(recipe.id).encoder(fetch(recipe))
    except ConversionError as error:
        pytest.skip(f"the recipe's weights cannot be fetched: {error}")
    spec = TensorSpec("mels", "float32", ("batch", *sample["mels"].shape[1:]))
    settings, files = sound_preprocessing(SoundOptions(**recipe.sound), [spec])
    assert settings.samples == 159 * 160
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    encoder = SoundEncoder(tmp_path, settings.to_dict(), [spec])

    def embed(archive: zipfile.ZipFile, speaker: str, number: int) -> np.ndarray:
        sounds = [archive.read(f"recordings/{digit}_{speaker}_{number}.wav") for digit in DIGITS]
        mels = encoder.inputs(sounds).feeds(np.arange(len(DIGITS)))["mels"]
        with torch.no_grad():
            made = module.eval()(torch.from_numpy(np.asarray(mels)))["embedding"]
        return torch.nn.functional.normalize(made, dim=1).numpy()

    with zipfile.ZipFile(ZIP) as archive:
        voices = np.stack([np.concatenate([embed(archive, s, 0), embed(archive, s, 1)]).mean(0) for s in SPEAKERS])
        asked = np.stack([embed(archive, s, 2) for s in SPEAKERS])
    nearest = (asked @ voices.T / np.linalg.norm(voices, axis=1)).argmax(-1)
    assert (nearest == np.arange(len(SPEAKERS))[:, None]).mean() > 0.9
