"""Ctrl-C while `python -m edgelora` still imports the package: a line, and the shell's status for it.

Python imports a package before its `__main__`, so the package listens itself, first of all, and only where it is the
command that was asked for: an application that imports it has its own ways.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

_INTERRUPTED = 130


def listen() -> None:
    """Have an interruption end the command, if this is one and nothing else was asked for."""
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def hand_over() -> None:
    """Have it raised from now on: all is imported, and what has begun must end in order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Whether this is `python -m edgelora`, before its `__main__` runs: until then the first argument is "-m"."""
    _, found, module = " ".join(sys.orig_argv).partition(" -m ")
    return bool(found) and sys.argv[:1] == ["-m"] and module.split()[:1] == ["edgelora"]


def _leave(*_: Any) -> NoReturn:
    """End here: an exception may be caught by whatever is being imported, and nothing has begun that needs an end."""
    os.write(2, b"edgelora: interrupted\n")
    os._exit(_INTERRUPTED)
