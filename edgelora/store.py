"""The adapter store: a folder per person, a folder per version, a pointer to the current one.

ROOT/NAME/name                     the name itself: file systems that ignore case must not mix people up
ROOT/NAME/versions/000001/…        an adapter's files, published at once
ROOT/NAME/current                  the number of the current version, replaced atomically
ROOT/NAME/training/…               the state of an unfinished training
ROOT/NAME/lock                     held by the process that trains or saves
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import uuid
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgelora.adapter import RECORD_FILE, Adapter, read_adapter, to_files
from edgelora.errors import AdapterError, StoreError
from edgelora.files import TEMPORARY_PREFIX, locked, publish_folder, remove_folder, write_atomic

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_TRASH = ".trash-"


@dataclass(frozen=True)
class VersionInfo:
    """A saved version: number, when (ISO 8601, UTC), bytes, and the training record."""

    number: int
    created: str
    size: int
    training: Mapping[str, Any]
    labels: tuple[str, ...] | None

    def summary(self) -> str:
        """The record in a few words."""
        history: list[Mapping[str, Any]] = self.training.get("history") or []
        last: Mapping[str, Any] = history[-1] if history else {}
        parts = [f"{k.replace('eval_', '')} {v:.3f}" for k, v in last.items() if k != "epoch" and isinstance(v, float)]
        return f"{self.training.get('steps', 0)} steps" + (f", {', '.join(parts)}" if parts else "")


@dataclass(frozen=True)
class AdapterInfo:
    """A person's adapter in the store."""

    name: str
    current: int
    versions: tuple[VersionInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of all versions."""
        return sum(version.size for version in self.versions)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class AdapterStore:
    """Adapters by name, with versions. Opening finishes what a killed process left undone."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._held: set[str] = set()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root}: not a folder; name another --store")
        self._recover()

    def list(self) -> list[str]:
        """The names that have a saved version, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if _NAME.fullmatch(p.name) and self._versions(p))

    def exists(self, name: str) -> bool:
        """Whether the name has a saved version."""
        return bool(self._versions(self._folder(name)))

    def save(self, name: str, adapter: Adapter) -> int:
        """Save as a new version and make it current; returns its number. On return it is on the disk.

        Saving what the current version already holds changes nothing.

        Raises:
            StoreError: a bad name, or the disk refuses; everything saved before is as it was.
        """
        files = to_files(adapter)
        folder = self._folder(name)
        with self._held_lock(name), self._writing(f"adapter {name!r} cannot be saved"):
            numbers = self._versions(folder)
            current = self._current(folder, numbers)
            if current and _content(folder / "versions" / _padded(current)) == files:
                return current
            number = max(numbers, default=0) + 1
            publish_folder(folder / "versions" / _padded(number), files)
            write_atomic(folder / "current", str(number).encode())
        return number

    def load(self, name: str, version: int | None = None) -> Adapter:
        """The current version, or the one asked for.

        Raises:
            StoreError: no such adapter or version. AdapterError: its files are damaged.
        """
        number = self.current_version(name) if version is None else version
        folder = self._folder(name) / "versions" / _padded(number)
        if not folder.is_dir():
            have = ", ".join(map(str, self._versions(self._folder(name)))) or "none"
            raise StoreError(f"adapter {name!r} has no version {number}; it has {have}")
        return read_adapter(folder)

    def current_version(self, name: str) -> int:
        """The number of the current version.

        Raises:
            StoreError: no such adapter; the known names are shown.
        """
        folder = self._folder(name)
        number = self._current(folder, self._versions(folder))
        if not number:
            known = self.list()
            shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
            raise StoreError(
                f"no adapter {name!r} in {self.root}; " + (f"there are {shown}" if known else "it is empty")
            )
        return number

    def show(self, name: str) -> AdapterInfo:
        """All versions of an adapter."""
        current = self.current_version(name)
        folder = self._folder(name)
        infos: list[VersionInfo] = []
        for number in self._versions(folder):
            path = folder / "versions" / _padded(number)
            stamp = datetime.datetime.fromtimestamp((path / RECORD_FILE).stat().st_mtime, datetime.UTC)
            size = sum(file.stat().st_size for file in path.iterdir())
            adapter = read_adapter(path)
            infos.append(
                VersionInfo(number, stamp.isoformat(timespec="seconds"), size, adapter.training, adapter.labels)
            )
        return AdapterInfo(name, current, tuple(infos))

    def rollback(self, name: str, version: int | None = None) -> int:
        """Make an older version current (default: the one before); returns its number. Nothing is deleted.

        Raises:
            StoreError: there is no such version.
        """
        current, folder = self.current_version(name), self._folder(name)
        numbers = self._versions(folder)
        target = version if version is not None else max((n for n in numbers if n < current), default=0)
        if target not in numbers:
            raise StoreError(
                f"adapter {name!r} has no version {version}; it has {', '.join(map(str, numbers))}"
                if version is not None
                else f"adapter {name!r} has no version before {current}"
            )
        with self._writing(f"adapter {name!r} cannot be rolled back"):
            write_atomic(folder / "current", str(target).encode())
        return target

    def remove(self, name: str) -> None:
        """Delete all that belongs to a name: every version and any training state.

        Raises:
            StoreError: no such adapter.
        """
        folder = self._folder(name)
        if not folder.is_dir():
            self.current_version(name)
        with self._writing(f"adapter {name!r} cannot be removed"):
            trash = self.root / f"{_TRASH}{uuid.uuid4().hex}"
            folder.rename(trash)
            remove_folder(trash)

    @contextlib.contextmanager
    def lock(self, name: str) -> Generator[None]:
        """Hold the adapter against other processes that would train it.

        Raises:
            StoreError: another process holds it, or the store cannot be written.
        """
        folder = self._folder(name)
        with self._writing(f"adapter {name!r} cannot be locked"):
            self._claim(folder, name)
        with locked(folder / "lock", f"adapter {name!r}"):
            self._held.add(name)
            try:
                yield
            finally:
                self._held.discard(name)

    def _held_lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if name in self._held else self.lock(name)

    def state_path(self, name: str) -> Path:
        """The folder for the state of an unfinished training."""
        return self._folder(name) / "training"

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name) or name.endswith("."):
            raise StoreError(
                f"{name!r} cannot name an adapter: 1 to 128 letters, digits or . _ @ + - that begin with a letter or "
                "digit, and no reserved file name"
            )
        folder = self.root / name
        try:
            owner = (folder / "name").read_text(encoding="utf-8")
        except FileNotFoundError:
            return folder
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{folder}: its name cannot be read ({error})") from error
        if owner != name:
            raise StoreError(f"{folder} belongs to {owner!r}: on this file system {name!r} is the same folder")
        return folder

    def _claim(self, folder: Path, name: str) -> None:
        (folder / "versions").mkdir(parents=True, exist_ok=True)
        if not (folder / "name").exists():
            write_atomic(folder / "name", name.encode())

    @staticmethod
    def _versions(folder: Path) -> list[int]:
        try:
            names = [entry.name for entry in (folder / "versions").iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(n) for n in names if n.isascii() and n.isdigit() and (folder / "versions" / n).is_dir())

    @staticmethod
    def _current(folder: Path, numbers: list[int]) -> int:
        """The pointer if it is intact, else the highest version; 0 if there is none."""
        try:
            number = int((folder / "current").read_bytes()[:16])
        except (OSError, ValueError):
            number = 0
        return number if number in numbers else max(numbers, default=0)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{what}: {error.strerror or error} ({self.root}); free some space or check the permissions. Nothing "
                "that was saved before is lost"
            ) from error

    def _recover(self) -> None:
        """Delete what interrupted saves and removals left; never a published version."""
        if not self.root.is_dir() or not os.access(self.root, os.W_OK):
            return
        for entry in self.root.iterdir():
            if entry.name.startswith(_TRASH):
                remove_folder(entry)
            elif entry.is_dir():
                with contextlib.suppress(StoreError, OSError), locked(entry / "lock", entry.name):
                    for parent in (entry, entry / "versions", entry / "training"):
                        _remove_temporaries(parent)


def _remove_temporaries(folder: Path) -> None:
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.startswith(TEMPORARY_PREFIX):
            if entry.is_dir():
                remove_folder(entry)
            else:
                entry.unlink(missing_ok=True)


def _padded(number: int) -> str:
    return f"{number:06d}"


def _content(folder: Path) -> dict[str, bytes]:
    try:
        return {path.name: path.read_bytes() for path in folder.iterdir()}
    except (OSError, AdapterError):
        return {}
