"""The installed `edgelora` command. It stands outside the package, whose first import takes most of a second.

An interruption in that time ends the command as one later does: a line, and the shell's status for it.
"""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn

_INTERRUPTED = 130


def main() -> int:
    """Import the package and run the command line; returns the exit status."""
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell may have it ignored
    if listens:
        signal.signal(signal.SIGINT, _leave)
    from edgelora.cli import main as run

    if listens:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _leave(*_: Any) -> NoReturn:
    """End here: an exception may be caught by whatever is being imported, and nothing has begun that needs an end."""
    os.write(2, b"edgelora: interrupted\n")
    os._exit(_INTERRUPTED)
