"""Prompts as tokens: plain text to go on from, or a conversation by the model's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from edgelora.errors import DataError
from edgelora.language.samples import Message
from edgelora.language.sampling import Ints
from edgelora.language.tokens import Tokens
from edgelora.records import Record

Prompt = str | Sequence[Message]
PROMPT_EXAMPLE = '{"prompt": "…"}'
_FIELDS = ("prompt", "messages", "text")


def check_prompt(prompt: Any, where: str) -> None:
    """Raise DataError unless this is a text, or a list of messages."""
    if isinstance(prompt, str):
        return
    one = cast(object, prompt)
    messages = cast("Sequence[Any]", prompt) if isinstance(prompt, Sequence) else ()
    if not messages:
        raise DataError(f"{where} must be a text, or a list of messages, not {one!r:.60}")
    for message in messages:
        body: Mapping[str, Any] = cast("Any", message) if isinstance(message, Mapping) else {}
        if not all(isinstance(body.get(key), str) for key in ("role", "content")):
            raise DataError(f"{where}: a message has a role and a content, both texts; {message!r:.60} has not")


def text_tokens(tokens: Tokens, text: str) -> Ints:
    """The tokens of a text to go on from; of an empty one the token that begins a text, if the model has one."""
    ids = tokens.encode(text).ids
    return ids if len(ids) or tokens.bos is None else np.array([tokens.bos], np.int64)


def conversation_tokens(tokens: Tokens, messages: Sequence[Message]) -> Ints:
    """The tokens of a conversation, up to where the model's answer begins.

    Raises:
        ConfigError: the base has no chat template. DataError: it refuses the conversation, or writes nothing of it.
    """
    ids = tokens.encode(tokens.template.render(messages, add_generation_prompt=True), special=False).ids
    if not len(ids):
        raise DataError("the chat template writes nothing of the conversation")
    return ids


def prompt_of(record: Record) -> Prompt:
    """The prompt of a record: its field `prompt`, `messages` or `text`. ValueError says what is wrong with it."""
    given = [name for name in _FIELDS if record.get(name) is not None]
    if len(given) != 1:
        raise ValueError(f"a prompt stands in one of the fields {', '.join(_FIELDS)}; the record has {given or 'none'}")
    value: Any = record[given[0]]
    try:
        check_prompt(value, f"the field {given[0]!r}")
    except DataError as error:
        raise ValueError(str(error)) from error
    return value
