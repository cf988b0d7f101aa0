"""Text to graph inputs, by the tokenizer that lies in the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import BundleError, DataError, EdgeLoraError
from edgelora.inputs import TokenInputs
from edgelora.manifest import TensorSpec
from edgelora.unicode import NOT_UNICODE, is_unicode

Ints = NDArray[np.int64]
IGNORED = -100
_GIVEN = ("input_ids", "attention_mask", "token_type_ids")


class TextEncoder:
    """Encodes texts as the bundle's inputs: ids, mask and types `[texts, longest]`, padded on the right.

    `preprocessing` is the manifest's: kind "text", tokenizer (a file of the bundle, as the tokenizers
    library writes it), max_length (tokens, the special ones included), pad_id.
    """

    takes = "texts"

    def __init__(self, folder: Path, preprocessing: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> None:
        """Load the tokenizer of the bundle in `folder`, whose graphs take `inputs`.

        Raises:
            EdgeLoraError: the `tokenizers` package is missing. BundleError: the tokenizer is missing or
                damaged, or the settings are malformed.
        """
        name, self.max_length, self.pad_id = text_settings(preprocessing, folder)
        path = folder / name
        self._tokenizer = load_tokenizer(path)
        special = int(self._tokenizer.num_special_tokens_to_add(False))
        try:
            self._tokenizer.enable_truncation(self.max_length)
        except Exception as error:  # the package raises plain Exception
            raise BundleError(f"{path}: not a usable tokenizer ({error}); convert the model again") from error
        if self.max_length <= special:
            raise BundleError(f"{path}: max_length {self.max_length} leaves no room beside {special} special tokens")
        self._inputs = {spec.name: spec.dtype for spec in inputs}

    def inputs(self, raw: Sequence[Any]) -> TokenInputs:
        """Graph inputs of texts, padded batch by batch.

        Raises:
            DataError: one is no text.
        """
        wrong = [text for text in raw if not isinstance(text, str)]
        if wrong:
            raise DataError(f"predict takes a list of texts; {wrong[0]!r} is none")
        return TokenInputs(self, self.tokens(raw))

    def encode(self, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Graph inputs of the texts; longer ones are cut at `max_length` tokens."""
        return self.collate(self.tokens(texts))

    def tokens(self, texts: Sequence[str]) -> list[Ints]:
        """The token ids of each text.

        Raises:
            DataError: a text that is not valid Unicode.
        """
        check_unicode(texts)
        return [np.asarray(e.ids, np.int64) for e in self._tokenizer.encode_batch(list(texts))]

    def words(self, samples: Sequence[Sequence[str]]) -> tuple[list[Ints], list[Ints]]:
        """Token ids of samples given as words, and for each token its word's index, −100 where it is not a
        word's first token (special tokens, later pieces of a word).

        Raises:
            DataError: a word that is not valid Unicode.
        """
        for sample in samples:
            check_unicode(sample)
        ids: list[Ints] = []
        firsts: list[Ints] = []
        for encoded in self._tokenizer.encode_batch([list(words) for words in samples], is_pretokenized=True):
            word_ids: list[int | None] = encoded.word_ids
            first = [
                IGNORED if word is None or (i > 0 and word_ids[i - 1] == word) else word
                for i, word in enumerate(word_ids)
            ]
            ids.append(np.asarray(encoded.ids, np.int64))
            firsts.append(np.asarray(first, np.int64))
        return ids, firsts

    def collate(self, ids: Sequence[Ints]) -> dict[str, NDArray[Any]]:
        """Pad token ids to the longest: the graph's inputs, each in the type that it takes.

        Raises:
            DataError: the graph takes an input that text does not give.
        """
        unknown = [name for name in self._inputs if name not in _GIVEN]
        if unknown:
            raise DataError(
                f"text gives {', '.join(_GIVEN)}, and this bundle also takes {', '.join(unknown)}: feed arrays"
            )
        width = max((len(row) for row in ids), default=1) or 1
        padded = np.full((len(ids), width), self.pad_id, np.int64)
        mask = np.zeros((len(ids), width), np.int64)
        for i, row in enumerate(ids):
            padded[i, : len(row)] = row
            mask[i, : len(row)] = 1
        given: dict[str, Ints] = dict(zip(_GIVEN, (padded, mask, np.zeros_like(padded)), strict=True))
        return {name: given[name].astype(dtype, copy=False) for name, dtype in self._inputs.items()}


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a file that the tokenizers library wrote, which neither pads nor cuts.

    Raises:
        EdgeLoraError: the `tokenizers` package is missing. BundleError: the file is missing or damaged.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EdgeLoraError('this bundle takes text: pip install "edgelora[text]"') from error
    try:
        tokenizer: Any = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
    except Exception as error:  # the package raises plain Exception
        raise BundleError(f"{path}: not a usable tokenizer ({error}); convert the model again") from error
    return tokenizer


def text_settings(preprocessing: Mapping[str, Any], folder: Path) -> tuple[str, int, int]:
    """The tokenizer's file name, max_length and pad_id."""
    name, length, pad = (preprocessing.get(key) for key in ("tokenizer", "max_length", "pad_id"))
    problems: list[str] = []
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        problems.append(f"tokenizer must be the name of a file of the bundle, not {name!r}")
    if not isinstance(length, int) or length < 1:
        problems.append(f"max_length must be a whole number from 1, not {length!r}")
    if not isinstance(pad, int) or pad < 0:
        problems.append(f"pad_id must be a whole number from 0, not {pad!r}")
    if problems:
        raise BundleError(f"{folder}: preprocessing: {'; '.join(problems)}; convert the model again")
    return str(name), int(length or 0), int(pad or 0)


def check_unicode(texts: Sequence[str]) -> None:
    """Raise DataError, with its number, for a text that is not valid Unicode."""
    for number, text in enumerate(texts, 1):
        if not is_unicode(text):
            raise DataError(f"text {number} is {NOT_UNICODE}")
