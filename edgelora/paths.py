"""What is at a path that somebody gave."""

from __future__ import annotations

import contextlib
from pathlib import Path


def is_file(path: Path) -> bool:
    """Whether there is such a file; what can be no path, or is not to be reached, is none."""
    with contextlib.suppress(OSError, ValueError):
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; as `is_file`."""
    with contextlib.suppress(OSError, ValueError):
        return path.is_dir()
    return False


def around(folder: Path) -> Path:
    """The folder that a folder lies in, also that of the working folder."""
    return folder.parent if folder.name not in ("", "..") else folder / ".."
