"""The registry of translations, by the operator's name in the TFLite schema."""

from __future__ import annotations

from collections.abc import Callable

from edgelora.errors import ConversionError
from edgelora_tools.sources.tflite.model import Operator
from edgelora_tools.sources.tflite.translation import Translation

Translate = Callable[[Translation, Operator], None]

TRANSLATIONS: dict[str, Translate] = {}


def translation(*kinds: str) -> Callable[[Translate], Translate]:
    """Register the translation of operators of these kinds: it reads the inputs and puts the outputs."""

    def register(translate: Translate) -> Translate:
        for kind in kinds:
            assert kind not in TRANSLATIONS, kind
            TRANSLATIONS[kind] = translate
        return translate

    return register


def uncovered(node: Operator, what: str) -> ConversionError:
    """The error for a form of an operator that its translation does not cover."""
    return ConversionError(f"{node.kind} {what}: this form is not translated")
