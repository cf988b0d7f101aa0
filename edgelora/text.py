"""Text to graph inputs, by the tokenizer that lies in the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelora.errors import BundleError, EdgeLoraError

Ints = NDArray[np.int64]
IGNORED = -100


class TextEncoder:
    """Encodes texts as the bundle's inputs: ids, mask and types `[texts, longest]`, padded on the right."""

    def __init__(self, folder: Path, preprocessing: Mapping[str, Any], input_names: Sequence[str]) -> None:
        """Load the tokenizer.

        Raises:
            EdgeLoraError: the `tokenizers` package is missing. BundleError: the tokenizer file is damaged.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise EdgeLoraError('this bundle takes text: pip install "edgelora[text]"') from error
        path = folder / str(preprocessing["tokenizer"])
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises plain Exception
            raise BundleError(f"{path}: not a tokenizer ({error}); convert the model again") from error
        self._tokenizer.no_padding()
        self.max_length = int(preprocessing["max_length"])
        self._tokenizer.enable_truncation(self.max_length)
        self.pad_id = int(preprocessing["pad_id"])
        self._names = tuple(input_names)

    def encode(self, texts: Sequence[str]) -> dict[str, Ints]:
        """Graph inputs of the texts; longer ones are cut at `max_length` tokens."""
        return self.collate(self.tokens(texts))

    def tokens(self, texts: Sequence[str]) -> list[Ints]:
        """The token ids of each text."""
        return [np.asarray(e.ids, np.int64) for e in self._tokenizer.encode_batch(list(texts))]

    def words(self, samples: Sequence[Sequence[str]]) -> tuple[list[Ints], list[Ints]]:
        """Token ids of samples given as words, and for each token its word's index, −100 where it is not a
        word's first token."""
        ids: list[Ints] = []
        firsts: list[Ints] = []
        for encoded in self._tokenizer.encode_batch([list(words) for words in samples], is_pretokenized=True):
            word_ids = encoded.word_ids
            first = [
                IGNORED if word is None or (i > 0 and word_ids[i - 1] == word) else word
                for i, word in enumerate(word_ids)
            ]
            ids.append(np.asarray(encoded.ids, np.int64))
            firsts.append(np.asarray(first, np.int64))
        return ids, firsts

    def collate(self, ids: Sequence[Ints]) -> dict[str, Ints]:
        """Pad token ids to the longest."""
        width = max((len(row) for row in ids), default=1) or 1
        padded = np.full((len(ids), width), self.pad_id, np.int64)
        mask = np.zeros((len(ids), width), np.int64)
        for i, row in enumerate(ids):
            padded[i, : len(row)] = row
            mask[i, : len(row)] = 1
        known = {"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros_like(padded)}
        return {name: known[name] for name in self._names if name in known}
