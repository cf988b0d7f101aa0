"""Text becomes the graph's inputs: ids, mask and types, padded, cut, and aligned with words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edgelora.errors import BundleError, DataError
from edgelora.manifest import TensorSpec
from edgelora.text import IGNORED, TextEncoder

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "turn", "light", "##s", "##er", "on", "off", "the", "a", "##b"]
PAD, UNKNOWN, CLS, SEP, TURN, LIGHT, S, ER, ON = range(9)
SETTINGS: dict[str, Any] = {"kind": "text", "tokenizer": "tokenizer.json", "max_length": 8, "pad_id": 0}
INPUTS = tuple(TensorSpec(n, "int64", ("batch", "sequence")) for n in ("input_ids", "attention_mask", "token_type_ids"))


def tokenizer() -> Tokenizer:
    made: Any = Tokenizer(models.WordPiece({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    made.enable_padding(length=32)  # a source's own settings must not matter
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> TextEncoder:
    return TextEncoder(bundle, SETTINGS, INPUTS)


def test_a_batch_is_padded_to_its_longest(encoder: TextEncoder):
    encoded = encoder.encode(["Turn on", "lights", "¿?"])
    np.testing.assert_array_equal(
        encoded["input_ids"], [[CLS, TURN, ON, SEP], [CLS, LIGHT, S, SEP], [CLS, UNKNOWN, UNKNOWN, SEP]]
    )
    encoded = encoder.encode(["turn", "turn on the lights"])
    np.testing.assert_array_equal(encoded["input_ids"][0], [CLS, TURN, SEP, PAD, PAD, PAD, PAD])
    np.testing.assert_array_equal(encoded["attention_mask"], [[1, 1, 1, 0, 0, 0, 0], [1] * 7])
    assert not encoded["token_type_ids"].any()
    assert all(array.dtype == np.int64 and array.shape == (2, 7) for array in encoded.values())


def test_long_texts_are_cut_and_keep_their_end_token(encoder: TextEncoder):
    (ids,) = encoder.tokens(["turn " * 100])
    assert ids.tolist() == [CLS, *[TURN] * 6, SEP]


def test_no_texts_give_an_empty_batch(encoder: TextEncoder):
    assert {name: array.shape for name, array in encoder.encode([]).items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (0, 1)
    )


words = st.sampled_from(["turn", "lights", "lighter", "on", "off", "a", "ab", "zzz", "THE", "on!"])


@given(st.lists(st.lists(words, max_size=12).map(" ".join), min_size=1, max_size=6))
def test_the_encoding_is_transformers(bundle: Path, texts: list[str]):
    reference = PreTrainedTokenizerFast(tokenizer_file=str(bundle / "tokenizer.json"), pad_token="[PAD]")
    expected = reference(texts, padding="longest", truncation=True, max_length=8, return_tensors="np")
    ours = TextEncoder(bundle, SETTINGS, INPUTS).encode(texts)
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(ours[name], expected[name])


@given(st.lists(st.lists(words, min_size=1, max_size=12), min_size=1, max_size=4))
def test_each_word_that_fits_is_at_its_first_token(bundle: Path, samples: list[list[str]]):
    encoder = TextEncoder(bundle, SETTINGS, INPUTS)
    ids, firsts = encoder.words(samples)
    for sample, tokens, first in zip(samples, ids, firsts, strict=True):
        assert len(tokens) == len(first) <= 8
        assert tokens[0] == CLS
        assert tokens[-1] == SEP
        found = [word for word in first.tolist() if word != IGNORED]
        assert found == list(range(len(found)))
        for place, word in enumerate(first.tolist()):
            if word != IGNORED:
                assert tokens[place] == encoder.tokens([sample[word]])[0][1]


def test_pieces_and_special_tokens_carry_no_word(encoder: TextEncoder):
    ids, firsts = encoder.words([["turn", "lights", "on"]])
    assert ids[0].tolist() == [CLS, TURN, LIGHT, S, ON, SEP]
    assert firsts[0].tolist() == [IGNORED, 0, 1, IGNORED, 2, IGNORED]


def test_the_graph_gets_its_inputs_in_its_types(bundle: Path):
    inputs = (TensorSpec("attention_mask", "int32", ("b", "s")), TensorSpec("input_ids", "int32", ("b", "s")))
    encoded = TextEncoder(bundle, SETTINGS | {"pad_id": 3}, inputs).encode(["turn", "turn on"])
    assert list(encoded) == ["attention_mask", "input_ids"]
    assert all(array.dtype == np.int32 for array in encoded.values())
    assert encoded["input_ids"][0, -1] == 3


def test_an_input_that_text_does_not_give_is_named(bundle: Path):
    encoder = TextEncoder(bundle, SETTINGS, (*INPUTS, TensorSpec("pixel_values", "float32", ("b", 3))))
    with pytest.raises(DataError, match="pixel_values"):
        encoder.encode(["turn"])


@pytest.mark.parametrize("call", [lambda e: e.encode(["turn", "\ud800"]), lambda e: e.words([["turn", "\ud800"]])])
def test_text_that_is_not_unicode_is_named(encoder: TextEncoder, call: Any):
    with pytest.raises(DataError, match="text 2 is not valid Unicode"):
        call(encoder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "missing.json"}, "missing.json: not a usable tokenizer"),
        ({"tokenizer": "../tokenizer.json"}, "tokenizer must be the name of a file"),
        ({"tokenizer": None}, "tokenizer must be"),
        ({"max_length": "8"}, "max_length must be"),
        ({"max_length": 0}, "max_length must be"),
        ({"max_length": 2}, "max_length 2 leaves no room beside 2 special tokens"),
        ({"pad_id": -1}, "pad_id must be"),
        ({"pad_id": None, "max_length": None}, "max_length must be .*pad_id must be"),
    ],
)
def test_a_bundle_with_bad_preprocessing_is_refused(bundle: Path, settings: dict[str, Any], message: str):
    with pytest.raises(BundleError, match=message):
        TextEncoder(bundle, SETTINGS | settings, INPUTS)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"version": "1.0", "model": {"type": "WordPiece"}}'])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        TextEncoder(tmp_path, SETTINGS, INPUTS)


def test_without_the_tokenizers_package_the_extra_is_named(bundle: Path):
    script = (
        "import sys; from pathlib import Path; sys.modules['tokenizers'] = None\n"
        "from edgelora.text import TextEncoder\n"
        "from edgelora.errors import EdgeLoraError\n"
        "settings = {'tokenizer': 'tokenizer.json', 'max_length': 8, 'pad_id': 0}\n"
        "try: TextEncoder(Path(sys.argv[1]), settings, ())\n"
        "except EdgeLoraError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert 'pip install "edgelora[text]"' in done.stdout
