"""A process that dies at its n-th write: from then on nothing that it tries reaches the disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


class Died(BaseException):
    """What a killed process never sees: no handler of the code under test may catch it."""


class Disk:
    """Counts the changes of the disk that this process makes, and lets it die before one of them, or halfway."""

    def __init__(self) -> None:
        self.changes = 0
        self.dies_at: int | None = None

    def change(self, make: Any, half: Any = None) -> Any:
        """Make a change, unless the process is dead; at its death half of it may be made."""
        if self.dies_at is not None and self.changes >= self.dies_at:
            if self.changes == self.dies_at and half is not None:
                half()
            self.changes += 1
            raise Died
        self.changes += 1
        return make()


@contextlib.contextmanager
def watched() -> Generator[Disk]:
    """All writing, renaming, making and deleting goes through a disk that can be told to stop."""
    disk, patch = Disk(), pytest.MonkeyPatch()

    def opened(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if mode != "xb":
            return real_open(self, mode, *arguments, **named)
        file = disk.change(lambda: real_open(self, mode, *arguments, **named))
        return _Dying(file, disk)

    real_open = Path.open
    patch.setattr(Path, "open", opened)
    for name in ("replace", "rename", "mkdir", "unlink"):
        real = getattr(Path, name)
        patch.setattr(Path, name, lambda self, *a, real=real, **k: disk.change(lambda: real(self, *a, **k)))
    for name in ("fsync", "unlink", "rmdir"):
        real = getattr(os, name)
        patch.setattr(os, name, lambda *a, real=real, **k: disk.change(lambda: real(*a, **k)))
    try:
        yield disk
    finally:
        patch.undo()


class _Dying:
    """A file whose write may stop in the middle."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def __enter__(self) -> _Dying:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: bytes) -> None:
        self._disk.change(lambda: self._file.write(content), lambda: self._file.write(content[: len(content) // 2]))

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()
