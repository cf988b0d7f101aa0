"""Text that comes in pieces: whole characters, and nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgelora.language.spelling import Speller
from edgelora.language.stops import StopStrings

TEXT = ["héllo wörld 👋🏽 naïve", "日本語のテキスト", "one two  three\n\tfour", "🤖🤖"]


def byte_level() -> Tokenizer:
    """GPT-2's kind: every token is bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT[:1], trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet))
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama's kind: words with ▁ for spaces, and bytes for what is in no word."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz\n\t"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@pytest.mark.parametrize("text", TEXT)
def test_pieces_are_whole_characters_and_together_the_text(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text).ids
    for cut in range(1, len(ids)):
        prompt = tokenizer.decode(ids[:cut])
        if prompt.endswith("\ufffd"):
            continue
        speller = Speller(lambda tokens: tokenizer.decode(tokens), ids[:cut])
        pieces = [speller.feed(token) for token in ids[cut:]]
        assert not any("\ufffd" in piece for piece in pieces)
        assert speller.end() == ""
        assert prompt + "".join(pieces) == tokenizer.decode(ids)
        assert sum(map(bool, pieces)) > 1 or len(ids) - cut < 8


@given(st.lists(st.integers(0, 285), max_size=40), st.sampled_from(list(TOKENIZERS)))
def test_any_tokens_lose_and_repeat_nothing(tokens, kind):
    tokenizer = TOKENIZERS[kind]
    prompt = tokenizer.encode("ab").ids
    speller = Speller(lambda ids: tokenizer.decode(ids), prompt)
    text = "".join(map(speller.feed, tokens)) + speller.end()
    if kind == "byte-level":  # bytes after a character that was not finished are spelled apart from it
        whole = tokenizer.decode(prompt + tokens).removeprefix("ab")
        assert text.replace("\ufffd", "") == whole.replace("\ufffd", "")
    assert speller.end() == ""


def test_bytes_of_which_the_rest_never_comes_are_told_at_the_end():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("a👋").ids
    speller = Speller(lambda tokens: tokenizer.decode(tokens), ids[:1])
    assert [speller.feed(token) for token in ids[1:-1]] == [""] * (len(ids) - 2)
    assert speller.end() == "\ufffd"


def cut(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    stream = StopStrings(stops)
    shown = [stream.feed(piece) for piece in pieces]
    return [*shown, "" if stream.found else stream.end()], stream.found


def test_a_stop_string_over_several_pieces_is_found_and_not_shown():
    assert cut(["\nUser:"], ["fine", ".\n", "Us", "er", ": no"]) == (["fine", ".", "", "", "", ""], "\nUser:")


def test_what_only_begins_like_a_stop_string_is_shown_later():
    assert cut(["abcd"], ["xab", "c", "e", "ab"]) == (["x", "", "abce", "", "ab"], None)


def test_the_first_of_several_stop_strings_counts():
    assert cut(["cd", "bcde", "b"], ["abcde"]) == (["a", ""], "b")


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_pieces_show_the_text_before_the_first_stop_string(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, found = cut(stops, pieces)
    places = [text.find(stop) for stop in stops if stop in text]
    assert (found is not None) == bool(places)
    whole = "".join(shown)
    assert text.startswith(whole)
    assert found is None or text[len(whole) :].startswith(found)
    if not places:
        assert whole == text
