"""Chat templates: a conversation as the text that a model was taught to read, and which of it is the assistant's.

A template is a Jinja2 program that comes with the model. It runs in Jinja2's sandbox, with what transformers gives it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from edgelora.errors import BundleError, DataError, EdgeLoraError
from edgelora.language.samples import ASSISTANT, Message

TIME = "strftime_now"  # what templates call the function that tells the time
Span = tuple[int, int]
_BEGIN, _END = "\ufdd0", "\ufdd1"  # noncharacters: no text that is exchanged holds them
_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplate:
    """A compiled template. `special` are the tokens that it may name, as `bos_token`; `where` names it in messages, and
    `clock` tells the time, which it may write.

    Raises:
        EdgeLoraError: Jinja2 is missing. BundleError: the template is broken.
    """

    def __init__(
        self,
        source: str,
        special: Mapping[str, str],
        where: str = "the chat template",
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._special, self._where = dict(special), where
        self._tagged = _TAG.search(source) is not None
        self._template = _compiled(source, where, clock)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The conversation as text; with `add_generation_prompt` also what comes before the assistant's next answer.

        Raises:
            DataError: the template refuses the conversation, as one whose roles are in an order that it does not know.
        """
        return self._marked(messages, add_generation_prompt).replace(_BEGIN, "").replace(_END, "")

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The conversation as text, and from where to where in it the assistant's answers stand.

        These are what the template marks by its `generation` tags. One without tags is asked for the conversation up
        to each answer, which then begins after the generation prompt.

        Raises:
            DataError: the template refuses the conversation, or writes its beginning otherwise once it goes on.
        """
        if self._tagged:
            return _unmarked(self._marked(messages, False))
        text, spans = self.render(messages), list[Span]()
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            until = self.render(messages[: number + 1])
            asked = self.render(messages[:number], add_generation_prompt=True) if number else ""
            if not text.startswith(until):
                raise DataError(
                    f"{self._where} writes message {number + 1} otherwise once the conversation goes on, so that what "
                    "is the assistant's cannot be told: give one answer a sample (prompt and completion), or convert "
                    "with a template that has generation tags"
                )
            spans.append((_shared(asked, until), len(until)))
        return text, spans

    def _marked(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text with marks around what stands in generation tags."""
        try:
            given = json.dumps([dict(message) for message in messages], ensure_ascii=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise DataError(f"a message holds what JSON does not ({error}): give texts, numbers and lists") from error
        if _BEGIN in given or _END in given:
            raise DataError("a message holds the noncharacters U+FDD0 or U+FDD1: leave them out")
        try:
            return self._template.render(
                messages=json.loads(given),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise DataError(f"{self._where} refuses the conversation: {error}") from error


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _unmarked(marked: str) -> tuple[str, list[Span]]:
    """The text without marks, and what stood between them."""
    text, spans = "", list[Span]()
    for part in re.split(f"({_BEGIN}[^{_END}]*{_END})", marked):
        piece = part.strip(_BEGIN + _END)
        if part.startswith(_BEGIN):
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, spans


def _compiled(source: str, where: str, clock: Callable[[], datetime]) -> Any:
    """The template in the environment that transformers gives one (`transformers.utils.chat_template_utils`)."""
    try:
        import jinja2
        import jinja2.exceptions
        import jinja2.ext
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError as error:
        raise EdgeLoraError('chat templates need Jinja2: pip install "edgelora[text]"') from error

    class GenerationTags(jinja2.ext.Extension):
        """`{% generation %}…{% endgeneration %}`, which stands around what the model itself says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return f"{_BEGIN}{caller()}{_END}"

    class Namespace(jinja2.utils.Namespace):
        """Jinja2's, without names that begin with an underscore: they lead out of the sandbox."""

        def __init__(*args: Any, **given: Any) -> None:  # `self` may be one of the names
            jinja2.utils.Namespace.__init__(*args[:1])
            for name, value in dict(*args[1:], **given).items():
                args[0][name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a template may not store {name!r}")
            super().__setitem__(name, value)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def mapping(*given: Any, **named: Any) -> dict[str, Any]:
        return dict(*given, **named)

    def now(form: str) -> str:
        return clock().strftime(form)

    def as_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )  # Jinja2's own escapes HTML

    environment: Any = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTags, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals |= {
        "raise_exception": refuse,
        TIME: now,
        "namespace": Namespace,
        "dict": mapping,  # not the type, whose methods would change what they get
    }
    try:
        return environment.from_string(source)
    except Exception as error:  # syntax errors, and what a constant expression raises
        raise BundleError(
            f"{where} is broken: {error}; put a valid chat_template.jinja beside the model and convert again"
        ) from error
