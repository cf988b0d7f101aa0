"""Tensors inside a source as its outputs: parity with the source's own tensor, and names that are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgelora.check import check
from edgelora.errors import ConversionError
from edgelora_tools.compile import source_outputs
from edgelora_tools.sources import open_source
from tests.convert.bundles import assert_checked, base_outputs, relative, to_bundle
from tests.convert.networks import save, tokens_of, transformer
from tests.convert.real_files import unpacked


@pytest.fixture(scope="module")
def real(tiny, tmp_path_factory):
    """The folder of the detector and MLPerf Tiny's files."""
    return unpacked("fastestdet.zip", Path(shutil.copytree(tiny, tmp_path_factory.mktemp("real") / "all")))


def inner_maps(path: Path) -> list[str]:
    """The names of the convolutions' outputs, in the order of the graph."""
    return [str(n.outputs[0].name) for n in open_source(str(path)).model.graph if n.op_type == "Conv"]


def test_a_map_inside_an_onnx_file(real, tmp_path):
    path = real / "FastestDet.onnx"
    name = inner_maps(path)[20]
    bundle = to_bundle(path, tmp_path, output=name)
    (output,) = bundle.manifest.outputs
    assert output.name == name and len(output.shape) == 4
    feeds = {bundle.manifest.inputs[0].name: np.random.default_rng(0).random((1, 3, 352, 352), np.float32)}
    wanted = source_outputs(open_source(str(path)), bundle.manifest, feeds)
    assert relative(base_outputs(bundle, feeds)[name], wanted[name]) < 1e-5


@pytest.mark.parametrize("file", ["pretrainedResnet", "pretrainedResnet_quant"])
def test_the_tensor_before_the_softmax_of_a_tflite_file(file, real, tmp_path):
    path = real / f"{file}.tflite"
    name = logits(path)
    bundle = to_bundle(path, tmp_path, output=name, target_modules=("model.conv2d_6", "model.dense"))
    assert [spec.name for spec in bundle.manifest.outputs] == [name]
    assert bundle.manifest.base_digest == to_bundle(path, tmp_path, "whole").manifest.base_digest
    verdict = check(bundle)
    assert verdict.passed, verdict


def logits(path: Path) -> str:
    """The name of what the last operator of the file reads."""
    from edgelora_tools.sources.tflite.model import read_model

    graph = read_model(path.read_bytes(), str(path))
    return graph.tensors[graph.operators[-1].inputs[0]].name


def test_maps_of_a_tflite_file_are_as_in_it_or_as_heads_read_them(real):
    source = open_source(str(real / "pretrainedResnet.tflite"))
    tensors = inner_shapes(real / "pretrainedResnet.tflite")
    name = next(n for n, shape in tensors.items() if len(shape) == 4 and shape[1] != shape[3])
    feeds = {str(source.model.graph.inputs[0].name): np.random.default_rng(0).random((2, 32, 32, 3), np.float32)}
    last, second = (source.reading(name, first).run(feeds)[name] for first in (False, True))
    assert last.shape == (2, *tensors[name][1:])
    assert np.array_equal(np.moveaxis(last, -1, 1), second)
    shape = next(y for y in source.reading(name, True).model.graph.outputs if y.name == name).shape
    assert shape is not None and list(shape)[1:] == list(second.shape[1:])


def inner_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from edgelora_tools.sources.tflite import computed
    from edgelora_tools.sources.tflite.model import read_model

    graph = read_model(path.read_bytes(), str(path))
    return {graph.tensors[i].name: graph.tensors[i].shape for i in computed(graph)}


@pytest.mark.parametrize("file", ["FastestDet.onnx", "vww_96_float.tflite"])
def test_a_name_that_is_none_is_refused_with_those_that_are_close(file, real):
    source = open_source(str(real / file))
    some = inner_maps(real / file)[3] if file.endswith("onnx") else list(inner_shapes(real / file))[3]
    with pytest.raises(ConversionError, match="no tensor") as found:
        source.reading(some + "x", False)
    assert some in str(found.value)
    with pytest.raises(ConversionError, match="in its order") as found:
        source.reading("?", False)
    assert str(found.value).count("\n") > 20


def test_the_tokens_before_the_last_layer_of_an_encoder(tmp_path):
    """Sizes that stay open, a head on a tensor inside, and nothing left of the layer behind it."""
    path = save(transformer(17, layers=2), tmp_path)
    norms = [n for n in open_source(str(path)).model.graph if n.op_type == "LayerNormalization"]
    inner = str(norms[2].outputs[0].name)
    bundle = to_bundle(path, tmp_path, task="sequence-classification", output=inner)
    assert bundle.manifest.source["outputs"] == [inner]
    assert all(point.id.startswith("encoder.layer.0.") for point in bundle.manifest.points)
    assert_checked(bundle)
    (out,) = source_outputs(open_source(str(path)), bundle.manifest, tokens_of(3, 5)).values()
    assert out.shape[:2] == (3, 5)
