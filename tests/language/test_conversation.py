"""A conversation: each token is read once, and never with another adapter's keys and values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgelora.errors import AdapterError, ConfigError, DataError, StoreError
from edgelora.language.cache import bytes_per_token
from edgelora.language.conversation import Chat
from edgelora.language.prompts import conversation_tokens
from edgelora.language.sampling import GenerationConfig
from edgelora.runtime import Model
from tests.language_models import LONGEST

SHORT = GenerationConfig(max_new_tokens=8)
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def stateless(model, messages, adapter=None):
    return model.generate([[SYSTEM, *messages]], adapter, config=SHORT)[0]


def prompt_tokens(model, messages) -> list[int]:
    return conversation_tokens(model.encoder, [SYSTEM, *messages]).tolist()


def new_tokens(model, before, answer, messages) -> int:
    """How many tokens of a conversation differ from those that were read for the turn before and its answer."""
    known, whole = [*prompt_tokens(model, before), *answer.tokens[:-1]], prompt_tokens(model, messages)
    shared = next((i for i, pair in enumerate(zip(known, whole, strict=False)) if len(set(pair)) > 1), len(known))
    assert shared >= len(prompt_tokens(model, before))
    return len(whole) - shared


def test_an_answer_is_what_the_whole_conversation_gives_and_reads_the_new_turn_alone(model, drawn):
    chat = Chat(model, drawn(1), SYSTEM["content"], SHORT)
    asked, answer = [], None
    for text in ("What?", "And", "So"):
        messages = [*chat.messages, user(text)]
        wanted = stateless(model, messages, drawn(1))
        new = len(prompt_tokens(model, messages)) if answer is None else new_tokens(model, asked, answer, messages)
        answer, asked = chat.ask(text), messages
        assert answer == wanted
        assert chat.messages == [*messages, {"role": "assistant", "content": wanted.text}]
        assert chat.read == new


@pytest.mark.parametrize("change", ["another adapter", "a new version", "other values in memory", "the base"])
def test_another_adapters_keys_and_values_are_not_used(model, drawn, change):
    model.store.save("anna", drawn(1))
    model.store.save("ben", drawn(2))
    memory = drawn(1)
    chat = Chat(model, memory if change == "other values in memory" else "anna", SYSTEM["content"], SHORT)
    chat.ask("What?")
    if change == "another adapter":
        chat.use("ben")
    elif change == "a new version":
        model.store.save("anna", drawn(2))
    elif change == "other values in memory":
        for name, values in drawn(2).tensors.items():
            memory.tensors[name][...] = values
    else:
        chat.use(None)
    messages = [*chat.messages, user("And then?")]
    wanted = stateless(model, messages, None if change == "the base" else drawn(2))
    assert wanted != stateless(model, messages, drawn(1))
    assert chat.ask("And then?") == wanted
    assert chat.read == len(prompt_tokens(model, messages))


def test_the_same_values_under_another_name_are_not_read_again(model, drawn):
    model.store.save("anna", drawn(1))
    chat = Chat(model, "anna", SYSTEM["content"], SHORT)
    answer = chat.ask("What?")
    chat.use(drawn(1))
    messages = [*chat.messages, user("And then?")]
    assert chat.ask("And then?") == stateless(model, messages, drawn(1))
    assert chat.read == new_tokens(model, [user("What?")], answer, messages)


def test_the_oldest_turns_are_forgotten_where_the_model_takes_no_more(model):
    chat = Chat(model, None, SYSTEM["content"], SHORT)
    for number in range(6):
        before = list(chat.messages)
        text = f"the quick brown fox jumps {number}"
        answer = chat.ask(text)
        kept = chat.messages[:-1]
        assert kept == [*before, user(text)][-len(kept) :] and kept[0]["role"] == "user"
        assert answer == stateless(model, kept)
        assert len(prompt_tokens(model, kept)) + SHORT.max_new_tokens <= LONGEST
        assert chat.forgotten == 2 * (number + 1) - len(chat.messages)
    assert chat.forgotten > 0


def test_little_memory_forgets_earlier(model):
    room = 90
    chat = Chat(model, None, None, SHORT, cache_memory=room * bytes_per_token(model.bundle.manifest.language))
    for _ in range(4):
        chat.ask("the quick brown fox")
    assert chat.forgotten > 0
    with pytest.raises(DataError, match=rf"more than the {room} that cache_memory holds"):
        chat.ask("the quick brown fox " * 20)


def test_a_turn_that_is_too_long_changes_nothing(model):
    chat = Chat(model, None, SYSTEM["content"], SHORT)
    chat.ask("What?")
    before = list(chat.messages)
    with pytest.raises(DataError, match="shorten it, or ask for fewer"):
        chat.ask("the quick brown fox " * LONGEST)
    assert chat.messages == before and chat.forgotten == 0
    assert chat.ask("And?") == stateless(model, [*before, user("And?")])


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(model):
    chat = Chat(model, None, SYSTEM["content"], SHORT)
    pieces = chat.stream("What?")
    said = next(piece.text for piece in pieces if piece.text)
    pieces.close()
    assert chat.messages == [user("What?"), {"role": "assistant", "content": said}]
    messages = [*chat.messages, user("Go on")]
    assert chat.ask("Go on") == stateless(model, messages)
    assert chat.read <= len(prompt_tokens(model, messages)) - len(prompt_tokens(model, [user("What?")]))


def test_turns_are_forgotten_once_though_an_answer_fails(model, drawn):
    chat = Chat(model, None, config=SHORT)
    while not chat.forgotten:
        chat.ask("the quick brown fox")
    forgotten, messages = chat.forgotten, chat.messages
    loud = drawn(1)
    chat.use(loud.with_tensors({name: tensor * 1e30 for name, tensor in loud.tensors.items()}))
    with pytest.raises(AdapterError, match="not finite"):
        chat.ask("the quick brown fox")
    assert (chat.forgotten, chat.messages) == (forgotten, messages)
    chat.use(None)
    chat.ask("the quick brown fox")
    assert chat.forgotten == forgotten + len(messages) + 2 - len(chat.messages)


def test_a_conversation_that_is_reset_begins_anew(model):
    chat = Chat(model, None, SYSTEM["content"], SHORT)
    first = chat.ask("What?")
    chat.ask("And?")
    chat.reset()
    assert chat.messages == []
    assert chat.ask("What?") == first


def test_adapters_that_cannot_answer_are_named_and_the_old_one_stays(model, drawn):
    model.store.save("anna", drawn(1))
    with pytest.raises(StoreError, match="no adapter 'ben'"):
        Chat(model, "ben")
    chat = Chat(model, "anna", config=SHORT)
    with pytest.raises(StoreError, match="no adapter 'ben'"):
        chat.use("ben")
    assert chat.adapter == "anna"


def test_a_base_without_a_template_is_named(model):
    language = replace(model.bundle.manifest.language, chat_template=None)
    model.bundle.manifest = replace(model.bundle.manifest, language=language)
    with pytest.raises(ConfigError, match="no chat template"):
        Chat(Model(model.bundle, model.store))


def test_no_room_for_a_turn_is_named_before_any(model):
    with pytest.raises(DataError, match="more than the 192 that the model takes"):
        Chat(model, None, "the quick brown fox " * 50, SHORT)
