"""Tensors inside a source as its outputs: parity with the source's own tensor, and names that are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgelora.cli.main import main
from edgelora.errors import ConversionError
from edgelora_tools.bundle_writer import base_digest
from edgelora_tools.compile import ConvertOptions, convert, source_outputs
from edgelora_tools.normalize import normalize
from edgelora_tools.sources import open_source
from tests.convert.bundles import assert_checked, base_outputs, relative, to_bundle
from tests.convert.networks import save, tokens_of, transformer
from tests.convert.real_files import logits, unpacked


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
    bundle = to_bundle(path, tmp_path, output=name, target_modules=".*")
    (output,) = bundle.manifest.outputs
    assert output.name == name and len(output.shape) == 4
    feeds = {bundle.manifest.inputs[0].name: np.random.default_rng(0).random((1, 3, 352, 352), np.float32)}
    wanted = source_outputs(open_source(str(path)), bundle.manifest, feeds)
    assert relative(base_outputs(bundle, feeds)[name], wanted[name]) < 1e-5


@pytest.mark.parametrize("file", ["pretrainedResnet", "pretrainedResnet_quant"])
def test_a_tensor_inside_leaves_the_base_what_it_is(file, real):
    """An adapter of the whole file's base fits: its digest is that of all weights, whatever the output."""
    path = real / f"{file}.tflite"
    source, name = open_source(str(path)), logits(path)
    models = [normalize(one.model.clone()) for one in (source, source.reading(name, False))]
    assert [str(y.name) for y in models[1].graph.outputs] == [str(models[0].graph.outputs[0].name), name]
    assert base_digest(models[0]) == base_digest(models[1])


@pytest.mark.parametrize("file", ["pretrainedResnet", "pretrainedResnet_quant"])
def test_a_head_on_a_softmax_is_told(file, real, tmp_path):
    path, told = real / f"{file}.tflite", list[str]()
    for number, output in enumerate((None, logits(path))):
        chosen = ConvertOptions("image-classification", output=output)
        convert(open_source(str(path)), tmp_path / f"{number}.edgelora", chosen, told.append)
        assert any("reads a softmax" in line for line in told) == (output is None)
        told.clear()


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


def test_listing_the_tensors_asks_for_no_new_place(transformer_file, tmp_path, capsys):
    arguments = ["convert", str(transformer_file), "-o", str(tmp_path)]
    assert main([*arguments, "--source-output", "?"]) == 2
    assert "the source's tensors, in its order" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "exists; choose another -o" in capsys.readouterr().err and not list(tmp_path.iterdir())
