"""Text to tokens and back, by the tokenizer of a language model: nothing is cut, and every token knows its text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import BundleError, ConfigError, DataError
from edgelora.language.chat import TIME, ChatTemplate
from edgelora.language.packing import Ints, RowInputs, row_of
from edgelora.manifest import LanguageModel
from edgelora.text import load_tokenizer, text_settings
from edgelora.unicode import NOT_UNICODE, is_unicode

_LEADS = "\n."


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text, `[tokens]` each: `starts` and `ends` are the characters that each stands for.

    `bytes` are those of the text (UTF-8) that come with each token, and sum up to the text's; special ones have none.
    """

    ids: Ints
    starts: Ints
    ends: Ints
    bytes: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, kept: slice) -> Encoded:
        """Some of the tokens."""
        return Encoded(self.ids[kept], self.starts[kept], self.ends[kept], self.bytes[kept])

    def __add__(self, other: Encoded) -> Encoded:
        """This text and then the other."""
        fields = ("ids", "starts", "ends", "bytes")
        return Encoded(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in fields))


class Tokens:
    """A model's tokenizer, with the number of tokens that the model knows, its end of text, and its chat template.

    `eos` are the tokens that end a text, none where the model has no such token; a text may have `most` of all kinds.
    """

    takes = "texts"

    def __init__(
        self,
        path: Path,
        vocabulary: int,
        bos: int | None = None,
        eos: Sequence[int] = (),
        template: Path | None = None,
        most: int = sys.maxsize,
    ) -> None:
        """Load the tokenizer at `path`; the chat template at `template` is loaded when it is first used.

        Raises:
            EdgeLoraError: a package is missing. BundleError: a file is missing or damaged.
        """
        self._path, self._tokenizer = path, load_tokenizer(path)
        self.vocabulary, self.bos, self.eos, self.most = vocabulary, bos, tuple(eos), most
        added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        self._special = np.asarray([number for number, token in added.items() if token.special], np.int64)
        self._template = template
        self._clock: Callable[[], datetime] = datetime.now

    @classmethod
    def of(cls, folder: Path, preprocessing: Mapping[str, Any], language: LanguageModel) -> Tokens:
        """Those of a bundle. Raises as `Tokens` does."""
        template = None if language.chat_template is None else folder / language.chat_template
        most = language.max_length or sys.maxsize
        name = text_settings(preprocessing, folder)[0]
        return cls(folder / name, language.vocabulary, language.bos, language.eos, template, most)

    def inputs(self, raw: Sequence[Any]) -> RowInputs:
        """Graph inputs of texts, from which the model goes on.

        Raises:
            DataError: one is no text, is empty, or has more tokens than the model takes.
        """
        found = RowInputs([])
        for number, text in enumerate(raw, 1):
            if not isinstance(text, str):
                raise DataError(f"predict takes a list of texts; {text!r} is none")
            ids = self.encode(text).ids
            if not 0 < len(ids) <= self.most:
                raise DataError(f"text {number} has {len(ids):,} tokens, and the model takes 1 to {self.most:,}")
            found.rows.append(row_of(ids, ids, np.zeros(len(ids), np.bool_), 0))
        return found

    def at(self, when: datetime) -> Tokens:
        """The same, its chat template told this time."""
        made = copy(self)
        made._clock = lambda: when
        vars(made).pop("template", None)
        return made

    @property
    def tells_time(self) -> bool:
        """Whether the chat template asks for the time. Raises BundleError: it cannot be read."""
        return self._template is not None and TIME in _source(self._template)

    def _load(self, path: Path) -> ChatTemplate:
        named = {"bos_token": self.bos, "eos_token": self.eos[0] if self.eos else None}
        special = {name: self._tokenizer.id_to_token(one) for name, one in named.items() if one is not None}
        return ChatTemplate(_source(path), special, str(path), self._clock)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template.

        Raises:
            ConfigError: the base has none. EdgeLoraError: Jinja2 is missing. BundleError: the template is broken.
        """
        if self._template is None:
            raise ConfigError(
                "this base has no chat template, so that messages cannot be written as it reads them: give texts "
                "(text, or prompt and completion; to `edgelora generate`), or convert it with a chat_template.jinja "
                "beside the model"
            )
        return self._load(self._template)

    def encode(self, text: str, special: bool = True) -> Encoded:
        """The tokens of a text, with those that the tokenizer puts before one unless `special` is off.

        What it would put behind one is left out, for a text goes on: see `ended`.

        Raises:
            DataError: the text is not valid Unicode. BundleError: a token that the model does not know.
        """
        if not is_unicode(text):
            raise DataError(f"the text is {NOT_UNICODE}")
        encoded = self._tokenizer.encode(text, add_special_tokens=special)
        ids = np.asarray(encoded.ids, np.int64)
        if ids.size and (largest := int(ids.max())) >= self.vocabulary:
            raise BundleError(
                f"{self._path}: makes token {largest} ({self._tokenizer.id_to_token(largest)!r}) and the model knows "
                f"{self.vocabulary:,}: it is another model's tokenizer; convert again with the right one"
            )
        offsets = np.asarray(encoded.offsets, np.int64).reshape(-1, 2)
        made = Encoded(ids, offsets[:, 0], offsets[:, 1], self._bytes(text, ids, offsets[:, 1]))
        own = np.flatnonzero(np.asarray(encoded.special_tokens_mask) == 0)
        return made.part(slice(own[-1] + 1)) if len(own) else made

    def going_on(self, text: str) -> Encoded:
        """The tokens of a text that follows another.

        Many tokenizers begin a text as if there were a space before it. Behind another character they do not: one that
        they put into no token with the text's first. Raises as `encode` does.
        """
        for lead in _LEADS:
            behind = self.encode(lead + text, special=False)
            size = int(np.count_nonzero(behind.ends <= 1))
            if size < len(behind) and behind.starts[size] == 1:
                own = behind.part(slice(size, None))
                return Encoded(own.ids, own.starts - 1, own.ends - 1, own.bytes)
        return self.encode(text, special=False)

    def _bytes(self, text: str, ids: Ints, ends: Ints) -> Ints:
        """The bytes between where the token before ends and where each ends, none of a special one."""
        widths = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        sizes = 1 + (widths >= 0x80).astype(np.int64) + (widths >= 0x800) + (widths >= 0x10000)
        until = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        reached = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int64), ends]))
        return np.diff(until[reached]) * ~np.isin(ids, self._special)

    def ended(self, encoded: Encoded) -> Encoded:
        """With the end of text behind it, unless it is there, or the model has none."""
        if not self.eos or (len(encoded) and int(encoded.ids[-1]) in self.eos):
            return encoded
        last = encoded.ends[-1:] if len(encoded) else np.zeros(1, np.int64)
        return encoded + Encoded(np.asarray(self.eos[:1], np.int64), last, last, np.zeros(1, np.int64))

    def text(self, ids: Sequence[int] | NDArray[np.int64]) -> str:
        """What tokens say, without special ones."""
        return str(self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=True))


def _source(template: Path) -> str:
    """A chat template as it is written. Raises BundleError: it cannot be read."""
    try:
        return template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{template}: cannot be read ({error}); convert the model again") from error
