"""Language models on bases of 8 bits: gradients near the real twin, one real head, generation from the same codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgelora.bundle import Bundle
from edgelora.check import check
from edgelora.errors import DataError
from edgelora.quantization import near_enough
from edgelora_tools.calibration import language_sample
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.measure_shapes import measure_shapes
from edgelora_tools.normalize import normalize

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
    assert np.mean([point.cosine for point in verdict.quantized]) >= 0.99
    assert all(point.cosine >= 0.95 for point in verdict.quantized)


def test_one_point_of_many_may_turn_further_than_their_mean() -> None:
    many = [0.999] * 9
    assert near_enough([*many, 0.96], language=True) == [True] * 10
    assert near_enough([*many, 0.94], language=True) == [True] * 9 + [False]
    assert near_enough([0.985] * 10, language=True) == [False] * 10  # it is the mean that allows more
    assert near_enough([*many, 0.96], language=False) == [True] * 9 + [False]
    assert near_enough([0.9901], language=True) == [True] and near_enough([0.9901], True, 5e-4) == [False]


def test_the_head_stays_real_and_one_tensor(bundle: Bundle) -> None:
    assert bundle.manifest.source["float32"] == ["lm_head"]
    language = bundle.manifest.language
    assert language is not None
    places: set[tuple[str, int | None]] = set()
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
        assert table.dtype == ir.DataType.FLOAT
        places.add((str(table.location), table.offset))
    assert len(places) == 1


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
