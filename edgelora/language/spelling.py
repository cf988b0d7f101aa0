"""Text from tokens that arrive one at a time, in whole characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CONTEXT = 8  # tokens of the prompt that decide how the first new one is spelled: with a space before it or without
_LONGEST = 12  # tokens without a whole character: a character has 4 bytes, so that these are none
_INCOMPLETE = "\ufffd"


class Speller:
    """Spells the tokens that follow a prompt.

    A token may be part of a character (byte-level tokens, bytes that a vocabulary falls back to), and the first one of
    a text is spelled in another way than those within. So tokens are spelled behind some that were spelled before them,
    whole characters all, and bytes wait until their character is whole.
    """

    def __init__(self, spell: Callable[[list[int]], str], prompt: Sequence[int]) -> None:
        """`spell` makes text of tokens, special ones left out."""
        self._spell = spell
        ends = ([int(token) for token in prompt[-count:]] for count in range(_CONTEXT, 0, -1))
        nothing: list[int] = []
        self._before = next((end for end in ends if _INCOMPLETE not in spell(end)), nothing)
        self._waiting: list[int] = []

    def feed(self, token: int) -> str:
        """The text that became whole with this token."""
        self._waiting.append(token)
        text = self._text()
        if text.endswith(_INCOMPLETE) and len(self._waiting) < _LONGEST:
            return ""
        return self._told(text)

    def end(self) -> str:
        """The text of tokens that wait, with a replacement character for bytes of which the rest did not come."""
        return self._told(self._text()) if self._waiting else ""

    def _text(self) -> str:
        before = self._spell(self._before)
        return self._spell(self._before + self._waiting)[len(before) :]

    def _told(self, text: str) -> str:
        if text and _INCOMPLETE not in text:
            self._before = self._waiting
        if text or len(self._waiting) >= _LONGEST:
            self._waiting = []
        return text
