"""A decoder is converted with its own tokenizer: another's is refused, and no right one is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from edgelora.cli import main
from edgelora.errors import ConversionError
from edgelora_tools.sources import open_source
from edgelora_tools.sources.causal_lm import load_causal_lm
from edgelora_tools.sources.gguf_header import check_gguf
from edgelora_tools.sources.reading import check_reads, measured, order_gain
from edgelora_tools.sources.sentences import SENTENCES
from tests.language.gguf_files import gguf_file
from tests.language_models import CONFIGS, build, byte_tokenizer, stories_archive, stories_folder

hf: Any = transformers
TASK = "text-generation"
SIZE = 512  # tokens of stories260k
HERE = Path("tokenizer.json")


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = stories_archive()
    if archive is None:
        pytest.skip("stories260k.zip is not there: EDGELORA_DATA names its folder")
    return stories_folder(archive, tmp_path_factory.mktemp("stories") / "stories")


@pytest.fixture(scope="module")
def teller(stories: Path) -> tuple[Any, bytes]:
    """The model, and its own tokenizer."""
    causal, _, files, _, _ = load_causal_lm(stories)
    return causal, files["tokenizer.json"]


def permuted(tokenizer: bytes, order: np.ndarray) -> bytes:
    """The same tokens at other ids: the i-th is order[i]."""
    body = json.loads(tokenizer)
    body["model"]["vocab"] = {token: int(order[i]) for token, i in body["model"]["vocab"].items()}
    for token in body["added_tokens"]:
        token["id"] = int(order[token["id"]])
    return json.dumps(body).encode()


def swapped(own: bytes) -> bytes:
    return permuted(own, np.random.default_rng(0).permutation(SIZE))


def swapped_pieces(own: bytes) -> bytes:
    """Special tokens, bytes where they belong, and the pieces at each other's ids."""
    return permuted(own, np.r_[:259, np.random.default_rng(0).permutation(np.arange(259, SIZE))])


def of_bytes(_own: bytes) -> bytes:
    return byte_tokenizer().backend_tokenizer.to_str().encode()


def of_words(_own: bytes) -> bytes:
    """BPE as GPT-2's, of as many tokens, learnt from the sentences here."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt: Any = trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([text for name, text in SENTENCES.items() if "English" in name] * 2, learnt)
    return made.to_str().encode()


@pytest.mark.parametrize("other", [swapped, swapped_pieces, of_bytes, of_words])
def test_another_models_tokenizer_is_refused(other: Callable[[bytes], bytes], stories: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(stories, folder)
    file = folder / "tokenizer.json"
    file.write_bytes(other((stories / "tokenizer.json").read_bytes()))
    for source, given_file in ((folder, None), (stories, file)):
        with pytest.raises(ConversionError, match="not the tokenizer of this llama") as told:
            open_source(str(source), tokenizer=given_file, task=TASK)
        assert str(given_file or folder) in str(told.value) and "--tokenizer FILE" in str(told.value)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_order_of_the_tokens_but_the_models_is_refused(seed: int, teller: tuple[Any, bytes]) -> None:
    causal, own = teller
    check_reads(causal, own, HERE)
    with pytest.raises(ConversionError, match="reads none of"):
        check_reads(causal, permuted(own, np.random.default_rng(seed).permutation(SIZE)), HERE)


def test_the_command_refuses_before_it_writes_and_can_be_told(stories: Path, tmp_path: Path, capsys: Any) -> None:
    other, bundle = tmp_path / "tokenizer.json", tmp_path / "stories.edgelora"
    other.write_bytes(swapped((stories / "tokenizer.json").read_bytes()))
    command = ["convert", str(stories), "-o", str(bundle), "--task", TASK, "--tokenizer", str(other), "--no-check"]
    assert main(command) != 0
    assert "--no-tokenizer-check" in capsys.readouterr().err and not bundle.exists()
    assert main([*command, "--no-tokenizer-check"]) == 0
    assert (bundle / "tokenizer.json").read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_an_untrained_model_proves_nothing(kind: str) -> None:
    check_reads(build(kind), of_bytes(b""), HERE)


def test_a_tokenizer_of_no_language_proves_nothing(teller: tuple[Any, bytes]) -> None:
    """As that of a model of proteins or chess: its letters are tokens, and plain sentences tell nothing of it."""
    causal, _ = teller
    names = [chr(i) for i in np.random.default_rng(0).permutation(np.arange(32, 32 + SIZE))]
    letters = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    assert (text := measured(causal, letters, SENTENCES["English"], np.random.default_rng(0))) is not None
    assert text.letters == 1 and text.gain < 1
    check_reads(causal, letters.to_str().encode(), HERE)


def test_the_gain_of_order_is_that_of_the_words(teller: tuple[Any, bytes]) -> None:
    causal, own = teller
    ids = Tokenizer.from_str(own.decode()).encode("Once upon a time, there was a little girl named Lily.").ids
    rng = np.random.default_rng(0)
    assert order_gain(causal, ids, rng) > 5
    assert order_gain(causal, [ids[0], *rng.permutation(ids[1:]).tolist()], rng) < 2
    assert np.isnan(order_gain(causal, [7] * 9, rng))  # a repetition says nothing


def test_a_tokenizer_beside_a_gguf_file_is_held_against_its_vocabulary(tmp_path: Path) -> None:
    causal, own = build("llama"), byte_tokenizer()
    causal.resize_token_embeddings(len(own) + 1)
    model, file = gguf_file(causal, tmp_path / "model.gguf"), tmp_path / "tokenizer.json"
    assert check_gguf(model).tokens == (*own.convert_ids_to_tokens(list(range(len(own)))), "ab")
    body = own.backend_tokenizer.to_str().encode()
    file.write_bytes(body)
    assert load_causal_lm(model, file)[2]["tokenizer.json"] == body
    file.write_bytes(permuted(body, np.r_[:3, 3 + np.roll(np.arange(256), 1)]))
    with pytest.raises(ConversionError, match=r"not the tokenizer of .*model.gguf: of 259 ids 256 are other tokens"):
        load_causal_lm(model, file)
