"""Keeping a store within its quota: what can be computed again is deleted, what was not used for longest first.

That is the values of frozen prefixes that were kept for a later run, and the state of a run whose adapter is saved.
Adapters and unfinished trainings are never deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from edgelora.errors import StoreError
from edgelora.files import remove_tree
from edgelora.prefix_cache import CACHE_SUFFIX
from edgelora.training_state import STATE_FILE

Free = Callable[[str], AbstractContextManager[bool]]


def make_room(root: Path, quota: int | None, needed: int, free: Free, finished: Callable[[str], bool]) -> list[Path]:
    """Delete until the store and `needed` bytes more are within `quota`; returns what was deleted.

    `free` holds an adapter and says whether nobody else uses it, `finished` whether the run whose state lies beside it
    is saved.

    Raises:
        StoreError: what may not be deleted is too large; nothing was deleted then.
    """
    if quota is None or not root.is_dir():
        return []
    total = _size(root) + needed
    if total <= quota:
        return []
    candidates = sorted((p for p in root.glob("*/training/*") if _is_cache(p, finished)), key=_last_used)
    over = total - sum(map(_size, candidates)) - quota
    if over > 0:
        raise StoreError(
            f"{root}: the quota of {quota:,} bytes is too small by {over:,}, and only caches are deleted to keep to "
            "it: raise it, keep fewer versions, or remove an adapter"
        )
    deleted: list[Path] = []
    for path in candidates:
        if total <= quota:
            break
        with free(path.parent.parent.name) as unused:
            if unused:
                total -= _size(path)
                remove_tree(path)
                deleted.append(path)
    return deleted


def _is_cache(path: Path, finished: Callable[[str], bool]) -> bool:
    """Whether a file beside an adapter's versions can be made again from what is left."""
    return path.name.endswith(CACHE_SUFFIX) or (path.name == STATE_FILE and finished(path.parent.parent.name))


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    size = 0
    for file in files:
        with contextlib.suppress(OSError):
            size += file.lstat().st_size if file.is_file() else 0
    return size
