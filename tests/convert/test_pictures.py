"""What a conversion says of pictures: from the options, the input's shape, and Hugging Face's own settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.errors import ConversionError, DataError
from edgelora.manifest import Manifest, TensorSpec
from edgelora.media.images import ImageSettings, read_picture
from edgelora.runtime import Model
from edgelora_tools.compile import ConvertOptions, convert, source_outputs
from edgelora_tools.preprocessing import image_preprocessing
from edgelora_tools.recipes import load_recipe
from edgelora_tools.sources import open_source
from edgelora_tools.sources.huggingface import image_facts
from edgelora_tools.sources.torch_export import module_source
from tests.device import pictures

TOWER = TensorSpec("x", "float32", ("batch", 3, 24, 32))


def test_the_input_tells_its_layout_and_size():
    made = image_preprocessing([TOWER], {"mean": [0.5], "std": [0.5]})
    assert made == ImageSettings("x", (24, 32), mean=(0.5,), std=(0.5,)).to_manifest()
    last = TensorSpec("x", "float32", ("batch", 24, 32, 1))
    assert image_preprocessing([last], {})["layout"] == "NHWC" and image_preprocessing([last], {})["channels"] == 1
    free = TensorSpec("x", "float32", ("batch", 3, "h", "w"))
    assert image_preprocessing([free], {"size": (8, 9)})["size"] == [8, 9]


@pytest.mark.parametrize(
    ("inputs", "given", "message"),
    [
        ([TensorSpec("ids", "int64", ("b", "s"))], {}, "one input of rank 4 with 1 or 3 channels; the source has ids"),
        ([TOWER, TOWER], {}, "one input of rank 4"),
        ([TensorSpec("x", "float32", ("b", 4, 8, 8))], {}, "with 1 or 3 channels"),
        ([TensorSpec("x", "float32", ("b", 3, "h", "w"))], {}, "give --image-size HEIGHT WIDTH"),
        ([TOWER], {"size": (32, 24)}, "32 × 24 do not fit"),
        ([TOWER], {"mean": [1.0, 2.0]}, "mean must be a number, or one for each channel"),
        ([TOWER], {"std": [0.0]}, "std must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(inputs: list[TensorSpec], given: dict[str, Any], message: str):
    with pytest.raises(ConversionError, match=message):
        image_preprocessing(inputs, given)


def test_pictures_of_the_task_need_such_an_input(tmp_path: Path):
    with pytest.raises(ConversionError, match="8 × 8 do not fit the input"):
        pictures.write_bundle(pictures.network(), tmp_path / "b.edgelora", image={"size": (8, 8)})


def test_a_recipe_says_how_pictures_become_its_input():
    open_sizes = TensorSpec("image", "float32", ("batch", 3, "height", "width"))
    recipe = load_recipe("mobilenetv2")
    made = ImageSettings.read(image_preprocessing([open_sizes], {**recipe.image, "size": (96, 96)}), "test")
    assert recipe.task == pictures.TASK and made.size == (96, 96) and made.fit == "crop" and made.std[2] == 0.225


def _write(folder: Path, body: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(body if isinstance(body, str) else json.dumps(body))
    return folder


def test_hugging_faces_settings(tmp_path: Path):
    from transformers import ConvNextImageProcessor, ViTImageProcessor

    assert image_facts(tmp_path) is None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)).resize((300, 240))
    raw = np.asarray(image)
    processors = [
        ViTImageProcessor(size={"height": 32, "width": 48}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]),
        ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875),
    ]
    for processor in processors:
        processor.save_pretrained(tmp_path)
        facts = image_facts(tmp_path)
        assert facts is not None
        settings = ImageSettings.read({"input": "x", **facts}, "test")
        theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
        picture = read_picture(raw)
        out = np.empty(settings.shape, np.float32)
        settings.put(settings.placement(picture).warp(picture.pixels, 0, settings.resample, picture.extent), out)
        assert out.shape == theirs.shape
        assert np.abs(out - theirs).mean() < 0.1  # theirs is cropped by whole pixels


@pytest.mark.parametrize("body", ["{", "[]", {"size": {"longest_edge": 3}}, {"size": 8, "resample": 77}])
def test_settings_that_cannot_be_followed_are_named(tmp_path: Path, body: Any):
    with pytest.raises(ConversionError, match=r"preprocessor_config\.json: cannot be followed"):
        image_facts(_write(tmp_path, body))


def test_a_vision_transformer_from_its_directory(tmp_path: Path):
    """Pixels, settings and tokens: the head reads the mean token, or the first one's."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5] * 3).save_pretrained(tmp_path / "vit")
    source = open_source(str(tmp_path / "vit"))
    made: Manifest = convert(source, tmp_path / "vit.edgelora", ConvertOptions(task=pictures.TASK, pooling="cls"))
    assert made.preprocessing["size"] == [16, 16] and made.preprocessing["mean"] == [0.5] * 3
    assert made.head is not None and made.head.features == 16
    model = Model.open(tmp_path / "vit.edgelora")
    assert model.encode([np.zeros((30, 20, 3), np.uint8)])["pixel_values"].shape == (1, 3, 16, 16)


class Mixing(torch.nn.Module):
    """A product over 16 channels: convolutions alone have nothing to quantize."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(16, 16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.mix(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_integers_are_calibrated_on_pictures(tmp_path: Path):
    empty, folder = tmp_path / "empty", pictures.write_folder(tmp_path / "data", 6)
    empty.mkdir()
    network = pictures.network()
    network.layers.append(Mixing())
    with pytest.raises(DataError, match="holds no pictures"):
        pictures.write_bundle(network, tmp_path / "a.edgelora", quantize="int8", calibration=empty)
    path = pictures.write_bundle(network, tmp_path / "b.edgelora", quantize="int8", calibration=folder)
    assert Model.open(path).bundle.manifest.source["precision"] == "int8"


def test_open_sides_are_settled_by_the_pictures_size(tmp_path: Path):
    """What the network makes of pictures has known sizes: a prefix of it can be kept by the sample."""
    free = {"image": {axis: torch.export.Dim(name) for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}}
    source = module_source(pictures.network(), {"image": torch.zeros(2, 3, 24, 32)}, "free", dynamic=free)
    image = {"mean": (0.5,), "std": (0.25,), "size": (16, 24)}
    path = tmp_path / "a.edgelora"
    made = convert(source, path, ConvertOptions(task=pictures.TASK, image=image, train_last=(1,)))
    assert made.inputs[0].shape == ("batch", 3, 16, 24)
    assert [spec.shape[1:] for spec in made.prefixes[0].kept] == [(16, 8, 12)]
    assert set(made.source["fixed"].values()) == {16.0, 24.0}
    assert check(Bundle.open(path)).passed
    pixels = np.random.default_rng(0).standard_normal((2, 3, 16, 24), np.float32)
    outputs = source_outputs(source, made, {"image": pixels})
    assert next(iter(outputs.values())).shape == (2, 16, 4, 6)
