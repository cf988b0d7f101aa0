"""Parse the command line, run the verb, turn its errors into a message and an exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from edgelora.cli import adapters, convert, demo, describe, exchange, language, learn, measure, prove, use, verify, zoo
from edgelora.cli.common import error_line
from edgelora.errors import ConfigError, EdgeLoraError, StoreWarning

USER_ERROR = 2
INTERRUPTED = 130

_VERBS = (convert, describe, verify, measure, demo, learn, use, language, adapters, exchange, prove, zoo)
_DESCRIPTION = """\
Personalise a frozen model on the device where it runs.

desktop:  convert a model into a bundle       edgelora convert model.onnx -o home.edgelora
device:   train one person's adapter          edgelora train home.edgelora --adapter NAME --data FILE
          use it                              edgelora predict home.edgelora --adapter NAME "a text"
          a language model                    edgelora chat home.edgelora --adapter NAME
"""


class _Parser(argparse.ArgumentParser):
    """A parser that says in a line what is wrong, without all of a verb's options before it.

    Options are written out: half of `--json` would not be known as it where the words cannot be parsed.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` tells more")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs. It raises ConfigError for what it cannot read."""
    parser = _Parser(prog="edgelora", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in _VERBS:
        module.add_verbs(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 1 (a check failed), 2 (an error of the user's)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = argparse.Namespace(json="--json" in words)
    try:
        options = parsed(words)
        with warnings.catch_warnings():
            warnings.simplefilter("always", StoreWarning)
            warnings.showwarning = _show_warning
            return int(options.run(options) or 0)
    except EdgeLoraError as error:
        if options.json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        error_line(f"edgelora: {error}")
        return USER_ERROR
    except KeyboardInterrupt:
        continues = "; the same command continues" if getattr(options, "continues", False) else ""
        error_line(f"edgelora: interrupted{continues}")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The options that the words say. Raises ConfigError: they say none."""
    parser = build_parser()
    options, rest = parser.parse_known_args(words)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(options, "given")):
        raise ConfigError(f"unrecognized arguments: {' '.join(rest)}; `edgelora {options.verb} --help` tells more")
    if rest:  # argparse takes no more inputs once an option has come between them and BUNDLE
        options.given = [*options.given, *rest]
    return options


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"edgelora: warning: {message}", file=sys.stderr)
