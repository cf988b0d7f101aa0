"""Language models on bases of 8 bits: gradients near the real twin, one tensor of codes for head and table."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgelora.bundle import Bundle
from edgelora.check import asked_points, check
from edgelora.divergence import check_alike, check_divergence
from edgelora.errors import DataError
from edgelora.parity import parity_samples, written_sample
from edgelora.quantization import check_quantization, near_enough
from edgelora_tools.calibration import language_sample
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.memory_table import _profile
from edgelora_tools.normalize import normalize
from tests.convert.test_check import resign
from tests.language_models import model_folder, stories_archive, stories_folder, to_language_bundle

Array = NDArray[Any]

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 8


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bundle(language_source: Any, calibration: Path) -> Bundle:
    path = calibration.with_name("int8.edgelora")
    chosen = ConvertOptions(task="text-generation", quantize="int8", calibration=calibration)
    convert(language_source, path, chosen)
    return Bundle.open(path)


def test_it_is_checked_with_the_tokens_that_come_next(bundle: Bundle) -> None:
    verdict = check(bundle)
    assert verdict.passed
    assert verdict.quantized
    assert verdict.divergence is not None and verdict.divergence.tokens == 96
    assert np.mean([point.cosine for point in verdict.quantized]) >= 0.99
    assert all(point.cosine >= 0.95 for point in verdict.quantized)


def test_one_point_of_many_may_turn_further_than_their_mean() -> None:
    many = [0.999] * 9
    assert near_enough([*many, 0.96], language=True) == [True] * 10
    assert near_enough([*many, 0.94], language=True) == [True] * 9 + [False]
    assert near_enough([0.985] * 10, language=True) == [False] * 10  # it is the mean that allows more
    assert near_enough([*many, 0.96], language=False) == [True] * 9 + [False]
    assert near_enough([0.9901], language=True) == [True] and near_enough([0.9901], True, 5e-4) == [False]


def vocabularies(bundle: Bundle) -> set[tuple[str, str, int | None]]:
    """The types and places of matrices as large as the vocabulary's, of which every graph has one."""
    language = bundle.manifest.language
    assert language is not None
    places: set[tuple[str, str, int | None]] = set()
    for file in (
        "forward.onnx",
        language.score,
        language.decode,
        *(f for t in bundle.manifest.training for f in t.files),
    ):
        graph = ir.load(bundle.path / file).graph
        wide = [
            v.const_value
            for v in graph.initializers.values()
            if v.shape and tuple(v.shape) == (language.vocabulary, 32)
        ]
        assert len(wide) == 1
        (table,) = wide
        assert isinstance(table, ir.ExternalTensor)
        places.add((str(table.dtype), str(table.location), table.offset))
    return places


def test_head_and_table_are_one_tensor_of_codes(bundle: Bundle) -> None:
    assert bundle.manifest.source["float32"] == [] and bundle.manifest.source["products"]["int8 by tokens"] == 1
    ((kind, *_),) = vocabularies(bundle)
    assert kind == "INT8"


def test_a_head_with_an_adapter_stays_real_and_one_tensor(language_source: Any, calibration: Path) -> None:
    path = calibration.with_name("adapted.edgelora")
    chosen = ConvertOptions(
        task="text-generation", quantize="int8", calibration=calibration, target_modules=("q_proj", "lm_head")
    )
    convert(language_source, path, chosen)
    made = Bundle.open(path)
    assert made.manifest.source["float32"] == ["lm_head"] and "int8 by tokens" not in made.manifest.source["products"]
    ((kind, *_),) = vocabularies(made)
    assert kind == "FLOAT"
    assert check(made).passed


@pytest.mark.parametrize("kind", ["gpt2", "phi", "gemma2"])
def test_other_heads_have_codes_too(kind: str, calibration: Path) -> None:
    """Tied; with a bias and a table of its own; tied, scaled and capped."""
    folder = model_folder(kind, calibration.parent / kind)
    path = folder.with_suffix(".edgelora")
    made = Bundle.open(to_language_bundle(folder, path, quantize="int8", calibration=calibration))
    assert made.manifest.source["products"]["int8 by tokens"] == 1
    verdict = check(made)
    assert verdict.passed and verdict.divergence is not None and verdict.divergence.passed


def test_memory_is_foretold(bundle: Bundle) -> None:
    """Of codes that rows are gathered of, and that are cut into blocks: all are read, and nothing is packed."""
    language = bundle.manifest.language
    assert language is not None
    for file in ("train-cross-entropy.onnx", language.score):
        graph, table = ir.load(bundle.path / file), bundle.manifest.memory[file]
        (codes,) = (v for v in graph.graph.initializers.values() if v.shape and tuple(v.shape) == (264, 32))
        assert codes.const_value is not None and table.read_always >= codes.const_value.nbytes == 264 * 32
        assert all(gathered.row_bytes != 32 for gathered in table.gathered)
        for batch, sequence in ((1, 256), (3, 50)):
            sizes = {"batch": batch, "sequence": sequence}
            (held,) = _profile(bundle.path / file, graph, [sizes], prepack=True)
            most, foretold = max(held.in_use.values()), table.peak(sizes)
            assert 0.999 * most <= foretold < 1.02 * most, (file, sizes)


def test_generation_multiplies_by_the_same_codes(bundle: Bundle) -> None:
    language = bundle.manifest.language
    assert language is not None
    codes = {
        file: {
            v.const_value.offset
            for v in ir.load(bundle.path / file).graph.initializers.values()
            if isinstance(v.const_value, ir.ExternalTensor) and v.const_value.dtype == ir.DataType.INT8
        }
        for file in ("forward.onnx", language.decode)
    }
    assert codes[language.decode]
    assert codes[language.decode] <= codes["forward.onnx"]


def test_text_to_calibrate_on_goes_on_in_full_rows(language_source: Any, calibration: Path) -> None:
    model = normalize(language_source.model.clone())
    options = ConvertOptions(task="text-generation", calibration=calibration)
    feeds = language_sample(language_source, language_source.decoder, model, measure_shapes(model)[0], options)
    ids = feeds["input_ids"]
    assert ids.shape[1] == 64
    np.testing.assert_array_equal(feeds["labels"][:, :-1], ids[:, 1:])
    assert feeds["loss_weight"].all()
    assert feeds["loss_weight"].sum() == pytest.approx(1)
    assert feeds["attention_mask"].all()


def test_whatever_trains_calibrates(language_source: Any, tmp_path: Path) -> None:
    model = normalize(language_source.model.clone())
    talk = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "good morning"}]
    pair = {"prompt": "hello", "chosen": " there", "rejected": " here"}
    kinds = [{"messages": talk}, {"prompt": "hello", "completion": " there"}, pair, {"text": "hello there"}]
    for number, record in enumerate(kinds):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(record) + "\n" + json.dumps(record | {"text": "x" * 300} if number == 3 else record))
        options = ConvertOptions(task="text-generation", calibration=path)
        feeds = language_sample(language_source, language_source.decoder, model, {}, options)
        weights = feeds["loss_weight"]
        assert weights.sum() == pytest.approx(1) and (weights == 0).any() and feeds["labels"].min() >= 0


def test_a_calibration_that_cannot_be_read_is_named(language_source: Any, tmp_path: Path) -> None:
    model = normalize(language_source.model.clone())
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name, said in (("none.txt", "cannot be read"), ("bytes.txt", "not UTF-8")):
        options = ConvertOptions(task="text-generation", calibration=tmp_path / name)
        with pytest.raises(DataError, match=said):
            language_sample(language_source, language_source.decoder, model, {}, options)


def broken(bundle: Bundle, tmp_path: Path, suffix: str, number: int, change: Callable[[Array], Array]) -> Bundle:
    """A copy in whose graphs one tensor of a product is another: they agree, as those of a wrong compiler would."""
    path = tmp_path / "broken.edgelora"
    shutil.copytree(bundle.path, path)
    for file in path.glob("*.onnx"):
        model = onnx.load(file)  # with the weights, that small models hold inline
        named = (t for t in model.graph.initializer if t.name.endswith(suffix) and "lm_head" not in t.name)
        found = sorted(named, key=lambda t: natural(t.name))
        if found:
            tensor = found[number]
            wrong = change(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(wrong), tensor.name))
        file.write_bytes(model.SerializeToString())
        resign(path, file.name)
    return Bundle.open(path)


def natural(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", name)]


def heads_swapped(codes: Array) -> Array:
    return np.concatenate([codes[8:16], codes[:8], codes[16:]])


BROKEN: dict[str, Any] = {
    "scale": (".scale", 19, lambda x: x * np.float32(1.5)),
    "heads": (".codes", 17, heads_swapped),
    "layer": (".scale", 20, lambda x: x * 0),
    "rotation": ("inv_freq", 0, lambda x: x * np.float32(0.5)),
}


@pytest.fixture(scope="module")
def stories(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Real weights: in random ones heads are much alike."""
    archive = stories_archive()
    if archive is None:
        pytest.skip("stories260k.zip is not there: EDGELORA_DATA names its folder")
    folder = stories_folder(archive, tmp_path_factory.mktemp("stories") / "stories")
    path = folder.with_suffix(".edgelora")
    return Bundle.open(to_language_bundle(folder, path, quantize="int8", calibration=calibration))


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_does_not_pass(stories: Bundle, what: str, tmp_path: Path) -> None:
    written = written_sample(stories)
    assert written is not None
    assert check_divergence(stories, written, parity_samples(stories)).passed
    assert all(point.passed for point in check_quantization(stories))
    wrong = broken(stories, tmp_path, *BROKEN[what])
    answers = check_divergence(wrong, written, parity_samples(wrong))
    assert not answers.passed or not all(point.passed for point in check_quantization(wrong))
    assert answers.passed == (what == "heads")  # of which the gradients alone tell


def test_a_graph_that_breaks_alone_does_not_pass(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "broken.edgelora"
    shutil.copytree(bundle.path, path)
    model = onnx.load(path / "score.onnx", load_external_data=False)
    (cost,) = [node for node in model.graph.node if "nll" in node.output]
    cost.output[:] = ["right" if name == "nll" else name for name in cost.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.02, np.float32), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], ["nll"]))
    (path / "score.onnx").write_bytes(model.SerializeToString())
    resign(path, "score.onnx")
    wrong, written = Bundle.open(path), written_sample(bundle)
    assert written is not None and bundle.manifest.language is not None
    assert all(graph.passed for graph in check_alike(bundle, bundle.manifest.language, written[0]))
    found = check_alike(wrong, bundle.manifest.language, written[0])
    assert [graph.file for graph in found if not graph.passed] == ["score.onnx"]


def test_one_token_of_many_may_stand_on_an_edge(bundle: Bundle) -> None:
    written = written_sample(bundle)
    assert written is not None
    inputs, source = written

    def shifted(count: int) -> bool:
        logits = source["logits"].copy()
        logits[0, :count, 7] += 60
        return check_divergence(bundle, (inputs, {"logits": logits}), parity_samples(bundle)).passed

    assert shifted(2) and not shifted(3)


def test_the_source_writes_two_texts_a_row(bundle: Bundle, language_source: Any) -> None:
    written = written_sample(bundle)
    assert written is not None
    inputs, source = written
    ids, segments, places = (inputs[name] for name in ("input_ids", "attention_mask", "position_ids"))
    assert ids.shape == (4, 24) and (segments[1:, -1] == 2).all()
    assert all((row == np.r_[:n, : 24 - n]).all() for row, n in zip(places, (segments == 1).sum(1), strict=True))
    starts = ids[places == 0]
    assert (starts == language_source.decoder.bos).all()
    np.testing.assert_array_equal(source["logits"], language_source.run(inputs)["logits"])


def test_differences_are_asked_at_both_ends_of_what_is_known(bundle: Bundle) -> None:
    points = bundle.manifest.trainable * 5
    named = [replace(point, id=str(number)) for number, point in enumerate(points)]
    known = {point.id: True for point in named[:-1]}
    asked = [int(point.id) for point in asked_points(named, known)]
    assert asked == [0, len(named) - 2, len(named) - 1]
    assert asked_points(named, {}) == named
