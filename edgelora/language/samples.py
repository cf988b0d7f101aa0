"""What a record holds for a language model to learn from, in TRL's formats, and the passages of a plain text."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from edgelora.errors import DataError
from edgelora.records import STANDARD_INPUT, Record, shown, source_name, text_field
from edgelora.samples import NoLabel

ASSISTANT = "assistant"
EXAMPLE = '{"prompt": "…", "completion": "…"}'
KINDS = (("text",), ("messages",), ("prompt", "completion"), ("prompt", "chosen", "rejected"))
# About a page: a split of a plain text into training and held-out samples deals in these.
_PASSAGE = re.compile(r".{1,2000}[^\n]{0,2000}\n*", re.DOTALL)

Message = dict[str, Any]
Turns = str | tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class LanguageSample(NoLabel):
    """A sample without classes. `where` names its file and line in messages; nothing depends on it."""

    where: str = field(default="", compare=False)

    def record(self) -> Any:
        return {name: value for name, value in vars(self).items() if name != "where"}


@dataclass(frozen=True)
class Passage(LanguageSample):
    """A text, of which all is learned; with a `part` the passage of that number of a longer one, at its `end` or not.

    Passages that follow each other in a list are read as one text.
    """

    text: str
    part: int | None = None
    end: bool = True


@dataclass(frozen=True)
class Conversation(LanguageSample):
    """Messages with `role` and `content`, of which the assistant's are learned."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Answer(LanguageSample):
    """A prompt and what follows it, which alone is learned: two texts, or the messages of two parts of a talk."""

    prompt: Turns
    completion: Turns


@dataclass(frozen=True)
class Preference(LanguageSample):
    """A prompt, what shall follow it, and what shall not: texts, or messages."""

    prompt: Turns
    chosen: Turns
    rejected: Turns

    @property
    def answers(self) -> tuple[Answer, Answer]:
        """The two as samples of their own, the chosen one first."""
        one, other = (Answer(self.prompt, turns, where=self.where) for turns in (self.chosen, self.rejected))
        return one, other


def sample_of(record: Record) -> LanguageSample:
    """The sample that a record holds. Raises ValueError with what is wrong with it."""
    given = {name for names in KINDS for name in names if record.get(name) is not None}
    if given == {"text"}:
        return Passage(text_field(record, "text"))
    if given == {"messages"}:
        return Conversation(_messages(record, "messages", answers=True))
    if given == {"prompt", "completion"}:
        prompt, completion = _turns(record, "prompt", "completion")
        return Answer(prompt, completion)
    if given == {"prompt", "chosen", "rejected"}:
        prompt, chosen, rejected = _turns(record, "prompt", "chosen", "rejected")
        if chosen == rejected:
            raise ValueError("the fields 'chosen' and 'rejected' are the same: nothing is preferred")
        return Preference(prompt, chosen, rejected)
    kinds = "; or ".join(" and ".join(names) for names in KINDS)
    raise ValueError(f"the fields are {', '.join(map(repr, record)) or 'none'}; a record has {kinds}")


def read_passages(path: str | Path) -> list[Passage]:
    """The passages of a text file, or of standard input ("-"), which put together are the whole text.

    Raises:
        DataError: it cannot be read, is not UTF-8, or has nothing but white space.
    """
    name = source_name(path)
    try:
        content = sys.stdin.buffer.read() if str(path) == STANDARD_INPUT else Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 (byte {error.start:,}); save the file as UTF-8") from error
    if not text.strip():
        raise DataError(f"{name}: holds no text")
    return list(passages_of(text, name))


def passages_of(text: str, where: str = "") -> Iterator[Passage]:
    """The passages of a text, each of some thousand characters, which end with a line where lines are not longer."""
    parts: list[str] = _PASSAGE.findall(text)
    for number, part in enumerate(parts):
        yield Passage(part, number, number == len(parts) - 1, where=f"{where}, passage {number + 1}")


def _turns(record: Record, *names: str) -> tuple[Turns, ...]:
    """The fields, all of them texts or all of them messages; after the first, the assistant says something in each."""
    lists = [name for name in names if isinstance(record[name], list)]
    if not lists:
        return tuple(text_field(record, name) for name in names)
    if len(lists) < len(names):
        raise ValueError(f"the fields {', '.join(map(repr, names))} must be all texts or all lists of messages")
    return tuple(_messages(record, name, answers=name != names[0]) for name in names)


def _messages(record: Record, name: str, answers: bool) -> tuple[Message, ...]:
    """A list of messages; with `answers`, one at least is the assistant's."""
    value = record[name]
    if not isinstance(value, list) or not value:
        raise ValueError(f"the field {name!r} must be a list of messages, not {shown(cast(object, value))}")
    messages: list[Message] = []
    for number, one in enumerate(cast("list[Any]", value), 1):
        if not isinstance(one, dict):
            raise ValueError(f"{name}: message {number} must have a role and a content, not be {shown(one)}")
        message = cast(Message, one)
        try:
            for key in ("role", "content"):
                text_field(message, key)
        except ValueError as error:
            raise ValueError(f"{name}: message {number}: {error}") from error
        messages.append(message)
    if answers and all(message["role"] != ASSISTANT for message in messages):
        raise ValueError(f"{name}: no message is the {ASSISTANT}'s, so that there is nothing to learn")
    return tuple(messages)
