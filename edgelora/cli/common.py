"""What verbs share: options, tables, JSON, progress on the terminal."""

from __future__ import annotations

import argparse
import json
import math
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, cast

from edgelora.errors import ConfigError, EdgeLoraError
from edgelora.memory import parse_size
from edgelora.runtime import Model
from edgelora.sealing import Key
from edgelora.session import SessionSettings

_EXTRAS = {"torch": "torch", "transformers": "torch", "tflite": "tflite", "flatbuffers": "tflite"}
_CLEAR = "\x1b[K"  # from the cursor to the end of the line

Verbs = Any  # argparse's subparsers action has no public name


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int | None], summary: str, example: str
) -> argparse.ArgumentParser:
    """A verb with its summary, an example in --help, and --json."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.set_defaults(run=run)
    return parser


def add_bundle(parser: argparse.ArgumentParser, store: bool = True) -> None:
    """The BUNDLE argument and how to run it."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle written by `edgelora convert`")
    if store:
        parser.add_argument("--store", metavar="DIR", help="the adapter store (default: NAME.adapters beside it)")
        parser.add_argument(
            "--key-file",
            metavar="FILE",
            help="the key of an encrypted store: 64 hexadecimal digits (openssl rand -hex 32)",
        )
    parser.add_argument("--threads", type=int, metavar="N", help="cores for one operator (default: all)")
    parser.add_argument(
        "--low-memory", action="store_true", help="no prepacked copies of the weights: less memory, a little slower"
    )
    parser.add_argument(
        "--window",
        type=memory_size,
        metavar="SIZE",
        help="with --low-memory, no more than SIZE of the weights in memory at once, as 32MB: slower again",
    )
    parser.add_argument(
        "--spinning",
        action=argparse.BooleanOptionalAction,
        help="threads that wait stay awake for a moment: faster on an idle machine, slower beside busy programs "
        "(default: where the cores are free as the work begins)",
    )


def settings_of(options: argparse.Namespace) -> SessionSettings:
    """Session settings from the options of `add_bundle`."""
    return SessionSettings(options.threads, options.low_memory, options.spinning, options.window)


def open_model(options: argparse.Namespace) -> Model:
    """The model that the options name."""
    key = Key.read(options.key_file) if options.key_file else None
    return Model.open(options.bundle, options.store, settings_of(options), key=key)


def add_format(parser: argparse.ArgumentParser, of_samples: bool) -> None:
    """The option that says how data are written, where their name does not; `of_samples`, which have labels."""
    also = ("txt", "coco", "voc", "yolo") if of_samples else ()
    told = "; txt is plain text, coco, voc and yolo are of boxes" if of_samples else ""
    parser.add_argument(
        "--format", choices=("csv", "jsonl", *also), help=f"of standard input or an unusual file name{told}"
    )


def add_lengths(parser: Any) -> None:
    """The options that say how long a row of a language model may be."""
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="TOKENS",
        help="of language models: a row's tokens at most (what the base takes; plain text is cut into rows of 256); "
        "longer samples are refused",
    )
    parser.add_argument("--truncate", action="store_true", help="of language models: cut longer samples instead")
    parser.add_argument(
        "--beta", type=float, default=0.1, help="of the loss dpo: how dear it is to leave the base (0.1)"
    )


def emit(options: argparse.Namespace, result: Any, text: str) -> None:
    """The result as JSON if asked for, in which what is no number is null, else as text."""
    print(json.dumps(_finite(result), indent=1, ensure_ascii=False) if options.json else text)


def _finite(value: Any) -> Any:
    """The value without NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in cast("dict[str, Any]", value).items()}
    return [_finite(one) for one in cast("Sequence[Any]", value)] if isinstance(value, list | tuple) else value


def note(message: str) -> None:
    """A line for the person, on standard error."""
    print(message, file=sys.stderr)


def error_line(message: str) -> None:
    """A line of an error, on standard error: on a terminal in the place of the progress line, if there is one."""
    print(f"{_CLEAR if sys.stderr.isatty() else ''}{message}", file=sys.stderr)


def progress_line(message: str) -> None:
    """Replace the progress line on a terminal; elsewhere say nothing.

    The cursor is left at its beginning, so that whatever is said next takes its place.
    """
    if sys.stderr.isatty():
        print(f"\r{_CLEAR}{message}\r", end="", file=sys.stderr, flush=True)


def stage_line(message: str) -> None:
    """What long work has come to: the progress line on a terminal, elsewhere a line of its own."""
    if sys.stderr.isatty():
        progress_line(message)
    else:
        note(message)


def end_progress() -> None:
    """Clear the progress line."""
    progress_line("")


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Aligned columns; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(_columns(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    numeric = [all(isinstance(row[i], int | float) for row in rows) and bool(rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            _padded(cell, width, right) for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()

    return "\n".join([line(list(header)), line(["-" * w for w in widths]), *(line(row) for row in cells)])


def _padded(cell: str, width: int, right: bool) -> str:
    blank = " " * (width - _columns(cell))
    return blank + cell if right else cell + blank


def _columns(text: str) -> int:
    """The columns of a terminal that a text takes: two for a wide letter, none for a mark on another."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def memory_size(text: str) -> int:
    """`parse_size` for argparse."""
    try:
        return parse_size(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def size_text(count: int) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def desktop(name: str) -> Any:
    """A module of the desktop tools; the one place where the device hands over to them.

    Raises:
        EdgeLoraError: they are not installed, with the line that installs them.
    """
    import importlib

    try:
        return importlib.import_module(f"edgelora_tools.{name}")
    except ModuleNotFoundError as error:
        missing = error.name or ""
        extra = _EXTRAS.get(missing.split(".")[0], "convert")
        raise EdgeLoraError(
            f'this needs the desktop tools ({missing} is missing): pip install "edgelora[{extra}]"'
        ) from error
