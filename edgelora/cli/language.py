"""Verbs that write text: generate, chat."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

from edgelora.cli.by_line import choose_adapters
from edgelora.cli.common import Verbs, add_bundle, add_format, add_verb, emit, memory_size, note, open_model
from edgelora.cli.use import stdin_lines
from edgelora.errors import ConfigError, DataError, EdgeLoraError
from edgelora.language.conversation import Chat
from edgelora.language.generation import CACHE_MEMORY
from edgelora.language.rows import END, LENGTH, Piece
from edgelora.language.sampling import GenerationConfig
from edgelora.samples import Named

_DRAWING = ("temperature", "top_k", "top_p", "seed")
_COMMANDS = """\
/adapter NAME   another person's adapter answers from now on; without a name the base
/reset          forget the conversation
/exit           leave (so does the end of input); Ctrl-C stops an answer"""


def add_verbs(verbs: Verbs) -> None:
    """Register the verbs."""
    parser = add_verb(
        verbs,
        "generate",
        run_generate,
        "Write on from a text, in the manner that an adapter has learned.",
        'edgelora generate stories.edgelora --adapter anna --prompt "Once upon a time"\n'
        "  edgelora generate stories.edgelora --prompt Hello --temperature 0.7 --top-p 0.9 --seed 1\n"
        "  edgelora generate stories.edgelora --data people.jsonl --json\n"
        '    with lines such as {"prompt": "Once", "adapter": "anna"}',
    )
    add_bundle(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to go on from; several times for several texts in one batch (default: a text per line of standard "
        "input)",
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="prompts from CSV or JSONL (field prompt, text or messages; a field adapter says whose one is)",
    )
    add_format(parser, of_samples=False)
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME",
        help="whose manner (default: the base alone); given several times, one for each prompt, in order",
    )
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show one text while it is written (default: on a terminal)",
    )
    _add_settings(parser)

    parser = add_verb(
        verbs,
        "chat",
        run_chat,
        "Talk to a language model, with a person's adapter.",
        "edgelora chat home.edgelora --adapter anna\n"
        "  printf 'Hello\\n/adapter ben\\nHello\\n' | edgelora chat home.edgelora --adapter anna\n\n"
        "in the conversation:\n" + "\n".join(f"  {line}" for line in _COMMANDS.splitlines()),
    )
    add_bundle(parser)
    parser.add_argument("--adapter", metavar="NAME", help="who answers (default: the base alone)")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before every conversation")
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """The settings of `GenerationConfig`; those of drawing turn it on."""
    default = GenerationConfig()
    group = parser.add_argument_group(
        "how",
        "Without --sample, --temperature, --top-k, --top-p and --seed the likeliest token is taken each time.",
    )
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=default.max_new_tokens,
        metavar="N",
        help="at most (%(default)s)",
    )
    group.add_argument("--sample", action="store_true", help="draw tokens by their probabilities")
    group.add_argument(
        "--temperature", type=float, metavar="T", help="below 1 likely tokens are favoured, above 1 others (1)"
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help=f"draw from the K likeliest tokens, 0: from all ({default.top_k})"
    )
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the fewest tokens that together have this probability (1)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same text again for the same number")
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=default.repetition_penalty,
        metavar="X",
        help="above 1 tokens that are already there become less likely (%(default)s)",
    )
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    group.add_argument(
        "--cache-memory",
        type=memory_size,
        default=CACHE_MEMORY,
        metavar="SIZE",
        help="for the keys and values of what was read, as 64MB (256MiB)",
    )


def settings_of_text(options: argparse.Namespace) -> GenerationConfig:
    """The settings from the options of `_add_settings`."""
    given = {name: getattr(options, name) for name in _DRAWING if getattr(options, name) is not None}
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=options.sample or bool(given),
        repetition_penalty=options.repetition_penalty,
        stop_strings=tuple(options.stop),
        **given,
    )


def run_generate(options: argparse.Namespace) -> None:
    """A text per prompt."""
    config, model = settings_of_text(options), open_model(options)
    if options.data and options.prompt:
        raise ConfigError("--prompt and --data both give prompts: leave one of them out")
    if options.data:
        lines = model.task.read_inputs(options.data, options.format)
    else:
        lines = [
            Named(text, None, f"prompt {number}") for number, text in enumerate(options.prompt, 1)
        ] or stdin_lines()
    if not lines:
        raise ConfigError("there is no prompt: give --prompt TEXT, --data FILE, or lines on standard input")
    chosen = choose_adapters(lines, options.adapter, None, model.store, "prompts")
    prompts = [line.content for line in lines]
    if options.stream and (len(prompts) > 1 or options.json):
        raise ConfigError("--stream shows one text while it is written: leave it out with several, and with --json")
    given = (prompts, None, chosen.adapters, config, options.cache_memory)
    if len(prompts) == 1 and not options.json and (options.stream or (options.stream is None and sys.stdout.isatty())):
        show(model.stream(*given))
        return
    made = model.generate(*given)
    results = [
        {"prompt": prompt, "adapter": adapter, "text": one.text, "finish_reason": one.finish_reason,
         "prompt_tokens": one.prompt_tokens, "new_tokens": len(one.tokens)}
        for prompt, adapter, one in zip(prompts, chosen.adapters, made, strict=True)
    ]  # fmt: skip
    texts = [one.text for one in made]
    if len(texts) > 1:
        heads = [f"[{i}{'' if name is None else f', {name}'}]" for i, name in enumerate(chosen.adapters, 1)]
        texts = [f"{head}\n{text}\n" for head, text in zip(heads, texts, strict=True)]
    emit(options, results, "\n".join(texts))


def show(pieces: Iterator[Piece]) -> None:
    """Print a text as it comes."""
    for piece in pieces:
        print(piece.text, end="", flush=True)
    print(flush=True)


def run_chat(options: argparse.Namespace) -> None:
    """A conversation, a turn a line."""
    config, model = settings_of_text(options), open_model(options)
    chat = Chat(model, options.adapter, options.system, config, options.cache_memory)
    terminal = sys.stdin.isatty() and not options.json
    if terminal:
        note(_COMMANDS)
    for line in _turns(terminal):
        try:
            if line.startswith("/"):
                if line.split()[0] == "/exit":
                    return
                _command(chat, line)
            else:
                _answer(chat, line, options.json)
        except EdgeLoraError as error:
            if options.json:
                print(json.dumps({"error": str(error), "kind": type(error).__name__}), flush=True)
            note(f"edgelora: {error}")


def _turns(terminal: bool) -> Iterator[str]:
    """The lines that are not blank, until the input ends. On a terminal Ctrl-C drops the one that is being written.

    Raises:
        DataError: they are not UTF-8.
    """
    if not terminal:
        try:
            yield from (line.strip() for line in sys.stdin if line.strip())
        except UnicodeDecodeError as error:
            raise DataError("standard input: not UTF-8") from error
        return
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]  # gives `input` its history and editing

    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note("\n/exit or Ctrl-D leaves")
            continue
        if line:
            yield line


def _command(chat: Chat, line: str) -> None:
    """One of `_COMMANDS` but /exit."""
    word, _, name = line.partition(" ")
    if word == "/reset":
        chat.reset()
        note("the conversation is forgotten")
    elif word == "/adapter":
        chat.use(name.strip() or None)
        note(f"{name.strip() or 'the base'} answers from now on")
    else:
        note(f"{word} is no command; there are\n{_COMMANDS}")


def _answer(chat: Chat, text: str, as_json: bool) -> None:
    """The answer as it comes, or as a line of JSON. Ctrl-C stops it, and what was said stays."""
    forgotten = chat.forgotten
    pieces: list[Piece] = []
    stopped = False
    try:
        with closing(chat.stream(text)) as answer:
            for piece in answer:
                pieces.append(piece)
                if not as_json:
                    print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        stopped = True
    if as_json:
        said = "".join(piece.text for piece in pieces)
        reason = "interrupted" if stopped or not pieces else pieces[-1].finish_reason
        new = sum(piece.finish_reason != END for piece in pieces)
        result: dict[str, Any] = {"adapter": chat.adapter, "user": text, "text": said, "finish_reason": reason,
                                  "read_tokens": chat.read, "new_tokens": new}  # fmt: skip
        print(json.dumps(result, ensure_ascii=False), flush=True)
    else:
        print(flush=True)
    if stopped:
        note("(stopped)")
    elif not as_json and pieces and pieces[-1].finish_reason == LENGTH:
        note(f"(cut off after {len(pieces)} tokens; --max-new-tokens allows more)")
    if chat.forgotten > forgotten:
        note(f"({chat.forgotten - forgotten} messages were forgotten: the conversation is longer than the model takes)")
