"""From raw input to a bundle's graph inputs, by the kind of its preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgelora.language.tokens import Tokens
from edgelora.manifest import Manifest, TensorSpec
from edgelora.media.image_inputs import ImageEncoder
from edgelora.media.sound_inputs import SoundEncoder
from edgelora.objectives import Inputs
from edgelora.text import TextEncoder


class Encoder(Protocol):
    """What makes graph inputs of texts, of pictures, …; `takes` says what it takes, in the plural."""

    @property
    def takes(self) -> str: ...

    def inputs(self, raw: Sequence[Any]) -> Inputs:
        """The graph inputs of these, which may be made batch by batch.

        Raises:
            DataError: one of them cannot be read, or is of another kind.
        """
        ...


ENCODERS: dict[str, Callable[[Path, Mapping[str, Any], Sequence[TensorSpec]], Encoder]] = {
    "text": TextEncoder,
    "image": ImageEncoder,
    "audio": SoundEncoder,
}


def encoder_of(folder: Path, manifest: Manifest) -> Encoder | None:
    """The encoder of the bundle in `folder`; None if it takes arrays alone.

    Raises:
        BundleError: its settings are malformed. EdgeLoraError: a package is missing.
    """
    if manifest.language is not None and manifest.preprocessing.get("kind") == "text":
        return Tokens.of(folder, manifest.preprocessing, manifest.language)
    made = ENCODERS.get(str(manifest.preprocessing.get("kind")))
    return None if made is None else made(folder, manifest.preprocessing, manifest.inputs)
