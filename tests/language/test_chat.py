"""Chat templates against transformers', and which tokens of a conversation are the assistant's."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from edgelora.errors import BundleError, ConfigError, DataError
from edgelora.language.chat import ChatTemplate
from edgelora.language.prompts import text_tokens
from edgelora.language.samples import Answer, Conversation, passages_of
from edgelora.language.tokenized import Lengths, fitted, rows_of, tokenized
from edgelora.language.tokens import Tokens
from tests.language import texts
from tests.language.texts import ANSWER, ASK, BLOCKS, BOS, CHATML, EOS, LONG, STRICT, TAGGED, THINKING

UNASKED = """{% if tools is not none %}Tools!{% endif %}{% if documents is not none %}Documents!{% endif %}
{{- messages[0].content }}"""
TEMPLATES = {
    "chatml": CHATML,
    "tagged": TAGGED,
    "strict": STRICT,
    "blocks": BLOCKS,
    "thinking": THINKING,
    "unasked": UNASKED,
}
SPECIAL = {"bos_token": BOS, "eos_token": EOS}


def oracle(template: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=texts.tokenizer(), chat_template=template, **SPECIAL)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("asks", [False, True])
def test_a_conversation_is_written_as_transformers_writes_it(name: str, asks: bool):
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    for messages in (ASK, LONG, LONG[:3]):
        theirs = oracle(TEMPLATES[name]).apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
        assert template.render(messages, asks) == theirs


@pytest.mark.parametrize("tagged", [False, True])
def test_the_assistants_tokens_are_those_that_transformers_tells_by_generation_tags(tmp_path: Path, tagged: bool):
    """Without tags they are found from the beginnings of the conversation, and the line end after each with them."""
    tokens = texts.tokens(tmp_path, TAGGED if tagged else CHATML)
    theirs = oracle(TAGGED).apply_chat_template(
        list(LONG), return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )
    made = tokenized(Conversation(LONG), tokens)
    ids, told = np.asarray(theirs["input_ids"]), np.asarray(theirs["assistant_masks"], bool)
    if tagged:
        assert made.encoded.ids.tolist() == ids.tolist()
        assert made.counted.tolist() == told.tolist() and 0 < told.sum() < len(told)
    else:
        said = tokens.text(made.encoded.ids[made.counted])
        assert said == "".join(message["content"] + "\n" for message in LONG if message["role"] == "assistant")
        assert int((made.encoded.ids[made.counted] == tokens.eos[0]).sum()) == 2


def test_messages_of_a_prompt_and_a_completion_are_the_conversation_of_both(tmp_path: Path):
    tokens = texts.tokens(tmp_path)
    apart, together = tokenized(Answer(ASK, ANSWER), tokens), tokenized(Conversation((*ASK, *ANSWER)), tokens)
    written = tokens.template.render(ASK, True)
    assert apart.encoded.ids.tolist() == together.encoded.ids.tolist()
    assert apart.counted.tolist() == together.counted.tolist()
    assert (~apart.counted).sum() == len(tokens.encode(written, special=False))


def test_messages_end_as_a_text_does_where_their_template_writes_no_end(tmp_path: Path):
    tokens = texts.tokens(tmp_path, "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    made = tokenized(Answer(ASK, ANSWER), tokens)
    assert made.encoded.ids[-1] == tokens.eos[0] and made.counted[-1]


def test_a_template_is_told_the_time_by_its_tokens_clock(tmp_path: Path):
    assert not texts.tokens(tmp_path).tells_time
    tokens = texts.tokens(tmp_path, "{{ strftime_now('%d %B %Y') }}: {{ messages[0].content }}")
    assert tokens.tells_time
    today = tokens.template.render(ASK)
    assert tokens.at(datetime(1969, 7, 20)).template.render(ASK) == f"20 July 1969: {ASK[0]['content']}" != today
    assert tokens.template.render(ASK) == today


def test_a_template_that_rewrites_what_was_said_is_refused(tmp_path: Path):
    tokens = texts.tokens(tmp_path, THINKING)
    tokenized(Conversation(LONG[:2]), tokens)
    with pytest.raises(DataError, match=r"chats\.jsonl, line 7: .*message 2 otherwise.*one answer a sample"):
        rows_of([Conversation(LONG, where="chats.jsonl, line 7")], tokens, Lengths(512, 512))


def test_what_a_template_refuses_is_a_named_error():
    template = ChatTemplate(STRICT, SPECIAL)
    with pytest.raises(
        DataError, match="the chat template refuses the conversation: Conversation roles must alternate"
    ):
        template.render([*ASK, *ASK])
    with pytest.raises(DataError, match="noncharacters"):
        template.render([{"role": "user", "content": "a\ufdd0b"}])
    with pytest.raises(DataError, match="what JSON does not"):
        template.render([{"role": "user", "content": "a", "when": object()}])
    assert template.render([MappingProxyType(ASK[0])]) == template.render(ASK)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace(_x=1) %}",
        "{% set n = namespace({'_x': 1}) %}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str):
    with pytest.raises(DataError, match="refuses the conversation"):
        ChatTemplate(source, {}).render(ASK)


@pytest.mark.parametrize("source", ["{% for m in messages %}", "{{ messages | nofilter }}", "{% generation %}"])
def test_a_broken_template_is_a_named_error(source: str):
    with pytest.raises(BundleError, match=r"home\.jinja is broken: .*convert again"):
        ChatTemplate(source, {}, "home.jinja")


def test_a_base_without_a_template_takes_no_messages(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no chat template.*prompt and completion"):
        tokenized(Conversation(LONG), texts.tokens(tmp_path, None))


def test_a_prompt_has_the_tokens_that_it_has_alone(tmp_path: Path):
    """Also where it ends with a space, which the tokens of both together would give to the completion's first word."""
    tokens = texts.tokens(tmp_path)
    for prompt, completion in (("The capital is", " Paris"), ("The capital is ", "Paris"), ("Wha", "t is")):
        made, alone = tokenized(Answer(prompt, completion), tokens), tokens.encode(prompt)
        assert made.encoded.ids[: len(alone)].tolist() == alone.ids.tolist()
        assert tokens.text(made.encoded.ids) == prompt + completion
        assert made.counted.tolist() == [False] * len(alone) + [True] * (len(made) - len(alone))
        assert made.encoded.ids[-1] == tokens.eos[0]
        assert made.row().bytes == len(completion.encode())


@pytest.mark.parametrize(("prompt", "completion"), [("The cat is ", "Tom"), ("Wha", "t is"), ("What\n", "\nis")])
def test_a_completion_has_no_space_that_was_not_written(tmp_path: Path, prompt: str, completion: str):
    """The tokenizer begins each text as if a space were before it."""
    merged = [("▁", "T"), ("a", "t"), ("\n", "\n")]
    pieces = [*"▁.\nTWIaehimostc", *(one + other for one, other in merged)]
    one = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merged))
    one.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    one.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    one.save(str(tmp_path / "tokenizer.json"))
    tokens = Tokens(tmp_path / "tokenizer.json", len(pieces))
    assert (
        tokens.encode(prompt + completion).ids[: len(tokens.encode(prompt))].tolist()
        != tokens.encode(prompt).ids.tolist()
    )
    made = tokenized(Answer(prompt, completion), tokens)
    assert tokens.text(made.encoded.ids) == prompt + completion
    assert made.row().bytes == len(completion.encode())


def test_the_end_that_a_tokenizer_puts_behind_each_text_stands_behind_the_last_alone(tmp_path: Path):
    texts.tokens(tmp_path)
    one = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    end = int(one.token_to_id(EOS) or 0)
    one.post_processor = processors.TemplateProcessing(f"$A {EOS}", special_tokens=[(EOS, end)])
    one.save(str(tmp_path / "tokenizer.json"))
    tokens = Tokens(tmp_path / "tokenizer.json", texts.VOCABULARY, None, (end,))
    assert text_tokens(tokens, "What is").tolist() == tokens.encode("What is", special=False).ids.tolist()
    made = tokenized(Answer("What is", " Paris"), tokens)
    assert np.flatnonzero(made.encoded.ids == end).tolist() == [len(made) - 1]
    assert tokens.text(made.encoded.ids) == "What is Paris"
    beginning = list(passages_of("a line\n" * 900))[:1]
    (row,) = rows_of(beginning, tokens, Lengths(10**6, 10**6))
    assert end not in row.labels


def test_a_sample_that_is_too_long_is_named_and_cut_only_where_asked(tmp_path: Path):
    tokens = texts.tokens(tmp_path)
    sample = Answer("Once upon a time", " there was a little girl" * 9, where="data.jsonl, line 3")
    made = tokenized(sample, tokens)
    assert fitted(made, Lengths(len(made), 8)).row().inputs.tolist() == made.encoded.ids[:-1].tolist()
    with pytest.raises(
        DataError, match=rf"data.jsonl, line 3: {len(made)} tokens, .* room for 20: .*--max-length.*--tr"
    ):
        rows_of([sample], tokens, Lengths(20, 8))
    (row,) = rows_of([sample], tokens, Lengths(20, 8, truncate=True))
    assert row.inputs.tolist() == made.encoded.ids[:19].tolist()
    with pytest.raises(DataError, match="nothing to learn in its first 2 tokens"):
        rows_of([sample], tokens, Lengths(2, 2, truncate=True))
