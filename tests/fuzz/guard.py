"""What hostile input may do: raise a documented error, soon, with little memory, and nothing outside its folder."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgelora.errors import EdgeLoraError

SECONDS, MEGABYTES = 20.0, 600
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
_watching: list[Guard] = []


class TooSlow(BaseException):
    """Not caught by the code under test."""


class Finding(Exception):
    """Something else than a documented error happened."""


class Guard:
    """Runs cases in one process and says what each did wrong."""

    def __init__(self, inside: Path) -> None:
        self.inside = os.path.realpath(inside)
        self.touched: list[str] = []
        self.slowest = 0.0
        if not _watching:
            sys.addaudithook(_audit)
        _watching[:] = [self]

    def run(self, act: Callable[[], object]) -> str:
        """The name of the documented error that came, or "".

        Raises:
            Finding: another exception, too slow, too much memory, or something outside was touched.
        """
        self.touched = []
        before, started, outcome = _peak(), time.perf_counter(), ""
        signal.signal(signal.SIGALRM, _too_slow)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            act()
        except EdgeLoraError as error:
            outcome = type(error).__name__
        except TooSlow as error:
            raise Finding(f"took longer than {SECONDS:g} s") from error
        except Exception as error:
            raise Finding(f"{type(error).__name__}: {error}"[:500]) from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.slowest = max(self.slowest, time.perf_counter() - started)
        if _peak() - before > MEGABYTES:
            raise Finding(f"took {_peak() - before:.0f} MB")
        if self.touched:
            raise Finding(f"touched {self.touched[:3]}")
        return outcome

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and _writes(arguments)
        beside = event in ("os.mkdir", "os.remove", "os.rmdir") and arguments[-1] not in (None, -1)
        if not (writes or event in _CHANGES) or beside:  # relative to a folder that shutil.rmtree has named
            return
        for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
            if isinstance(path, str | bytes | os.PathLike):
                path = os.fsdecode(path)
                folder, name = os.path.split(path)  # the link itself may be renamed or removed
                follows = writes and not arguments[2] & getattr(os, "O_NOFOLLOW", 0)
                real = os.path.realpath(path) if follows else os.path.join(os.path.realpath(folder), name)  # noqa: PTH118
                if not real.startswith((self.inside + os.sep, "/dev/")) and real != self.inside:
                    self.touched.append(f"{event} {real}")


def _writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (event == "open" or event in _CHANGES):
        _watching[0].note(event, arguments)


def _too_slow(*_: object) -> None:
    raise TooSlow


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
