"""The adapter store: a folder per person, a folder per version, a pointer to the current one.

ROOT/NAME/name                   the name itself: file systems that ignore case must not mix people up
ROOT/NAME/versions/000001/…      an adapter's files, published at once (versions.py)
ROOT/NAME/current                the number of the current version, replaced atomically; 0: none is
ROOT/NAME/training/…             the state of an unfinished training, and caches
ROOT/.edgelora/settings.json     what is kept at most (store_settings.py)
ROOT/.edgelora/lock              held for the moment of a write
ROOT/.edgelora/locks/NAME        held by the process that trains NAME
ROOT/.edgelora/staging/…         what is being written or deleted; emptied when the store is opened
"""

from __future__ import annotations

import contextlib
import datetime
import re
import threading
import uuid
import warnings
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgelora.adapter import Adapter, to_files
from edgelora.errors import AdapterError, StoreError, StoreWarning
from edgelora.files import (
    locked,
    make_folder,
    publish_folder,
    remove_temporaries,
    remove_tree,
    sync_folder,
    write_atomic,
)
from edgelora.quota import make_room
from edgelora.sealing import Key
from edgelora.store_settings import SETTINGS_FILE, StoreSettings
from edgelora.training_state import unfinished
from edgelora.versions import open_version, read_version, version_files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,9}")
_WRITE_WAIT, _NAME_WAIT = 30.0, 2.0


@dataclass(frozen=True)
class VersionInfo:
    """A saved version: number, when (ISO 8601, UTC), bytes, the training record, labels; or what is wrong with it."""

    number: int
    created: str
    size: int
    training: Mapping[str, Any]
    labels: tuple[str, ...] | None
    problem: str | None = None

    def summary(self) -> str:
        """The record in a few words."""
        if self.problem is not None:
            return f"damaged: {self.problem}"
        history: list[Mapping[str, Any]] = self.training.get("history") or []
        settings: Mapping[str, Any] = self.training.get("settings", {}).get("training", {})
        best = self.training.get("best_epoch") if settings.get("load_best_model_at_end", True) else None
        kept: Mapping[str, Any] = history[(best or len(history)) - 1] if history else {}
        parts = [f"{k.replace('eval_', '')} {v:.3f}" for k, v in kept.items() if k != "epoch" and isinstance(v, float)]
        return f"{self.training.get('steps', 0)} steps" + (f", {', '.join(parts)}" if parts else "")


@dataclass(frozen=True)
class AdapterInfo:
    """A person's adapter in the store: the number of the current version (0: none is), and all versions in order."""

    name: str
    current: int
    versions: tuple[VersionInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of all versions."""
        return sum(version.size for version in self.versions)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return asdict(self)


class AdapterStore:
    """Adapters by name, with versions; safe against kills, full disks and other processes.

    Opening creates nothing: a store is made by the first save. With a key, adapters and the state of trainings are
    encrypted and signed, and nothing else is read.
    """

    def __init__(self, root: str | Path, key: Key | None = None) -> None:
        """Open the store, and clear away what a killed process left half done; never a published version.

        Raises:
            StoreError: `root` is there and is not a folder.
        """
        self.root = Path(root)
        self.key = key
        self._own = self.root / ".edgelora"
        self._staging = self._own / "staging"
        self._holders: dict[str, int] = {}
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root}: not a folder; name another --store")
        self._refuse_links(self._own, self._staging, self._own / "locks")
        self._recover()

    @property
    def settings(self) -> StoreSettings:
        """What is kept at most; the same for every process."""
        return StoreSettings.read(self._own)

    def configure(self, settings: StoreSettings) -> None:
        """Set what is kept at most, from the next save on.

        Raises:
            StoreError: the disk refuses.
        """
        with self._writing("the store's settings cannot be saved"):
            write_atomic(self._own / SETTINGS_FILE, settings.to_bytes(), self._staging)

    def list(self) -> list[str]:
        """The names that have a saved version, sorted."""
        return [name for name in self._names() if self._has_versions(name)]

    def names_of(self, person: str) -> list[str]:
        """The names that belong to a person: the person's own, and those that go on with a plus (`ann+music`).

        What is only a training, with no version yet, is among them.
        """
        return [name for name in self._names() if name == person or name.startswith(f"{person}+")]

    def exists(self, name: str) -> bool:
        """Whether the name has a version that is current.

        Raises:
            StoreError: a name that no adapter can have.
        """
        return bool(self._current(name))

    def save(self, name: str, adapter: Adapter, activate: bool = True) -> int:
        """Save as a new version, and make it current unless `activate` is off; returns its number.

        On return it is on the disk. Saving what the current or the newest version already holds writes no other.
        Versions beyond those that the settings keep are deleted, and caches beyond the quota.

        Raises:
            StoreError: a bad name, another process trains it, the quota is too small, or the disk refuses; everything
                saved before is as it was.
        """
        files = to_files(adapter)
        with self._held(name), self._writing(f"adapter {name!r} cannot be saved"):
            folder, current = self._folder(name), self._current(name)
            numbers = _versions(folder)
            newest = max(numbers, default=0)
            number = next((n for n in (current, newest) if n and self._content(name, n) == files), 0)
            if not number:
                number = newest + 1
                written = version_files(files, self.key, purpose(name, number))
                self._make_room(sum(map(len, written.values())))
                if not activate:
                    self._point(name, current)  # before there is a version that could be taken for it
                publish_folder(_version_folder(folder, number), written, self._staging)
            if activate and number != current:
                self._point(name, number)
            self._prune(name)
        return number

    def load(self, name: str, version: int | None = None) -> Adapter:
        """The version asked for; without one the current version, or, if that is damaged, the last good one.

        In place of a damaged version another is taken with a `StoreWarning`.

        Raises:
            StoreError: no such adapter or version, or the key is not its own. AdapterError: its files are damaged.
        """
        return self._open(name, version) if version is not None else self.load_good(name, self.current_version(name))

    def load_good(self, name: str, version: int) -> Adapter:
        """The version, or in place of a damaged one the last good one, with a `StoreWarning`. Raises as `load`."""
        try:
            return self._open(name, version)
        except AdapterError as error:
            for other in reversed([n for n in _versions(self._folder(name)) if n != version]):
                with contextlib.suppress(AdapterError):
                    adapter = self._open(name, other)
                    warnings.warn(f"{error}\nversion {other} is used in its place", StoreWarning, 3)
                    return adapter
            raise

    def stamp(self, name: str, version: int) -> tuple[int, int]:
        """What tells a version from one of the same number that came after the name was removed.

        Raises:
            StoreError: there is no such version any more.
        """
        try:
            status = _version_folder(self._folder(name), version).stat()
        except OSError as error:
            raise StoreError(f"adapter {name!r} has no version {version} ({error.strerror or error})") from error
        return status.st_ino, status.st_mtime_ns

    def current_version(self, name: str) -> int:
        """The number of the current version.

        Raises:
            StoreError: no such adapter (the known names are shown), or none of its versions is current.
        """
        number = self._current(name)
        if number:
            return number
        if numbers := _versions(self._folder(name)):
            raise StoreError(
                f"no version of adapter {name!r} is current: {_numbers(numbers)} did not pass its gate; to use it all "
                f"the same: rollback {name} --to {numbers[-1]}"
            )
        known = self.list()
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise StoreError(f"no adapter {name!r} in {self.root}; " + (f"there are {shown}" if known else "it is empty"))

    def newest(self, name: str) -> int:
        """The highest number of a saved version, current or not; 0 if there is none."""
        return max(_versions(self._folder(name)), default=0)

    def show(self, name: str) -> AdapterInfo:
        """All versions of an adapter; a damaged one says what is wrong with it.

        Raises:
            StoreError: no such adapter.
        """
        numbers = _versions(self._folder(name))
        current = self._current(name) if numbers else self.current_version(name)
        return AdapterInfo(name, current, tuple(self._describe(name, number) for number in numbers))

    def rollback(self, name: str, version: int | None = None) -> int:
        """Make another version current (default: the one before); returns its number. Nothing is deleted.

        Raises:
            StoreError: there is no such version.
        """
        if not self.newest(name):
            self.current_version(name)  # raises, with the known names
        with self._writing(f"adapter {name!r} cannot be rolled back"):
            current, numbers = self._current(name), _versions(self._folder(name))
            if version is not None and version not in numbers:
                raise StoreError(f"adapter {name!r} has no version {version}; it has {_numbers(numbers)}")
            target = version if version is not None else max((n for n in numbers if n < current), default=0)
            if not target:
                raise StoreError(f"adapter {name!r} has no version before {current}")
            self._point(name, target)
        return target

    def remove(self, name: str) -> None:
        """Delete all that belongs to a name: every version, the state of a training, caches.

        Killed halfway, it is removed or it is there, whole; never a part of it.

        Raises:
            StoreError: no such adapter, another process trains it, or the disk refuses.
        """
        folder = self._folder(name)
        if not folder.is_dir():
            self.current_version(name)  # raises, with the known names
        with self._held(name), self._writing(f"adapter {name!r} cannot be removed"):
            self._discard(folder)
            remove_tree(self._lock_file(name))

    def make_room(self, needed: int = 0) -> list[Path]:
        """Delete caches until the store and `needed` bytes more are within the quota; returns what was deleted.

        Raises:
            StoreError: adapters alone are too large.
        """
        with self._refusing("caches cannot be deleted"):
            return self._make_room(needed)

    @contextlib.contextmanager
    def lock(self, name: str, wait_seconds: float = 0.0) -> Generator[None]:
        """Hold the adapter against all others that would train, save or remove it; this thread may.

        Raises:
            StoreError: another holds it, or the store cannot be written.
        """
        self._folder(name)
        self._refuse_links(self._own, self._own / "locks")
        with self._refusing(f"adapter {name!r} cannot be locked"):
            make_folder(self._lock_file(name).parent)
        with locked(self._lock_file(name), f"adapter {name!r}", wait_seconds):
            self._holders[name] = threading.get_ident()
            try:
                with self._writing(f"adapter {name!r} cannot be locked"):
                    remove_temporaries(self._claimed(name) / "training")
                yield
            finally:
                self._holders.pop(name, None)

    def state_path(self, name: str) -> Path:
        """The folder for the state of an unfinished training; write there only under `lock`."""
        return self._folder(name) / "training"

    def _held(self, name: str) -> contextlib.AbstractContextManager[None]:
        """`lock`, unless this thread holds it already."""
        mine = self._holders.get(name) == threading.get_ident()
        return contextlib.nullcontext() if mine else self.lock(name, _NAME_WAIT)

    def _lock_file(self, name: str) -> Path:
        return self._own / "locks" / name

    def _folder(self, name: str) -> Path:
        """The folder of a name, which is there or not, and is not somebody else's."""
        if not _NAME.fullmatch(name) or _RESERVED.fullmatch(name) or name.endswith("."):
            raise StoreError(
                f"{name!r} cannot name an adapter: 1 to 128 letters, digits or . _ @ + - that begin with a letter or "
                "digit and do not end with a dot, and no name that Windows reserves (con, nul, com1, …)"
            )
        folder = self.root / name
        try:
            owner = (folder / "name").read_text(encoding="utf-8")
        except FileNotFoundError:
            self._refuse_links(folder, folder / "versions", folder / "training")
            if _versions(folder):
                raise StoreError(
                    f"{folder / 'name'} is missing; if the folder is {name!r}'s, write the name into that file"
                ) from None
            return folder
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{folder}: its name cannot be read ({error})") from error
        if owner != name:
            raise StoreError(f"{folder} belongs to {owner!r}: on this file system {name!r} is the same folder")
        self._refuse_links(folder, folder / "versions", folder / "training")
        return folder

    def _refuse_links(self, *folders: Path) -> None:
        """What is written below a link would lie outside the store."""
        if link := next((folder for folder in folders if folder.is_symlink()), None):
            raise StoreError(
                f"{link} is a link, and nothing outside {self.root} is touched: put the folder itself there"
            )

    def _claimed(self, name: str) -> Path:
        """The folder of a name, made if it is not there. Raises OSError."""
        folder = self._folder(name)
        make_folder(folder)
        if not (folder / "name").exists():
            write_atomic(folder / "name", name.encode(), self._staging)
        make_folder(folder / "versions")
        return folder

    def _names(self) -> list[str]:
        """The names that have a folder, sorted."""
        if not self.root.is_dir():
            return []
        try:
            return sorted(p.name for p in self.root.iterdir() if _NAME.fullmatch(p.name) and (p / "name").is_file())
        except OSError as error:
            raise StoreError(f"{self.root}: cannot be read ({error.strerror or error})") from error

    def _has_versions(self, name: str) -> bool:
        try:
            return bool(_versions(self.root / name))
        except StoreError:  # asked for by its name it says what is wrong
            return False

    def _point(self, name: str, number: int) -> None:
        """Make a version current; 0: none. Raises OSError."""
        write_atomic(self._folder(name) / "current", str(number).encode(), self._staging)

    def _discard(self, folder: Path) -> None:
        """Delete a folder, at once as seen from outside. Raises OSError."""
        trash = self._staging / uuid.uuid4().hex
        folder.rename(trash)
        sync_folder(folder.parent)
        remove_tree(trash)

    def _prune(self, name: str) -> None:
        """Delete the oldest versions beyond those that are kept; never the current one. Raises OSError."""
        kept, folder = self.settings.keep_versions, self._folder(name)
        numbers, current = _versions(folder), self._current(name)
        for number in numbers[: -kept if kept is not None else 0]:
            if number != current:
                self._discard(_version_folder(folder, number))

    def _make_room(self, needed: int) -> list[Path]:
        return make_room(self.root, self.settings.quota, needed, self._evictable, self._is_finished)

    @contextlib.contextmanager
    def _evictable(self, name: str) -> Generator[bool]:
        """Whether nobody uses what lies beside an adapter's versions; held while it is deleted."""
        with contextlib.ExitStack() as stack:
            if self._holders.get(name) != threading.get_ident():
                try:
                    stack.enter_context(locked(self._lock_file(name), f"adapter {name!r}"))
                except StoreError:
                    yield False
                    return
            yield True

    def _is_finished(self, name: str) -> bool:
        """Whether the run whose state lies beside an adapter is one that a version holds."""
        try:
            run = unfinished(self.state_path(name), self.key)
            return run is not None and any(
                version.training.get("run_id") == run for version in self.show(name).versions
            )
        except StoreError:
            return False

    def _current(self, name: str) -> int:
        """What the pointer says; if it is missing or damaged, the highest intact version; 0 if there is none."""
        folder = self._folder(name)
        try:
            pointer = (folder / "current").read_bytes()[:16].decode("ascii")
        except (OSError, UnicodeDecodeError):
            pointer = ""
        if _NUMBER.fullmatch(pointer):
            number = int(pointer)
            if not number or _version_folder(folder, number).is_dir():
                return number
        numbers = _versions(folder)
        intact = (n for n in reversed(numbers) if self._problem(name, n) is None)
        return next(intact, max(numbers, default=0))

    def _open(self, name: str, number: int) -> Adapter:
        folder = self._folder(name)
        path = _version_folder(folder, number)
        if not path.is_dir():
            raise StoreError(f"adapter {name!r} has no version {number}; it has {_numbers(_versions(folder))}")
        try:
            return open_version(path, self.key, purpose(name, number))
        except AdapterError as error:
            others = [n for n in _versions(folder) if n != number]
            remedy = f"roll back to another version ({_numbers(others)})" if others else "train it again"
            raise AdapterError(f"{error}\nadapter {name!r}, version {number}, is damaged: {remedy}") from error

    def _problem(self, name: str, number: int) -> str | None:
        try:
            self._open(name, number)
        except (AdapterError, StoreError) as error:
            return str(error)
        return None

    def _content(self, name: str, number: int) -> dict[str, bytes]:
        """The files of a version; empty if they cannot be read."""
        try:
            return read_version(_version_folder(self._folder(name), number), self.key, purpose(name, number))
        except (AdapterError, StoreError):
            return {}

    def _describe(self, name: str, number: int) -> VersionInfo:
        path = _version_folder(self._folder(name), number)
        size, created = 0, ""
        with contextlib.suppress(OSError):
            size = sum(file.stat().st_size for file in path.iterdir())
            stamp = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
            created = stamp.isoformat(timespec="seconds")
        try:
            adapter = self._open(name, number)
        except (AdapterError, StoreError) as error:
            return VersionInfo(number, created, size, {}, None, str(error))
        return VersionInfo(number, created, size, adapter.training, adapter.labels)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Generator[None]:
        """Write to the store, one at a time; what the disk refuses becomes a StoreError."""
        self._refuse_links(self._own, self._staging, self._own / "locks")
        with self._refusing(what):
            make_folder(self._staging)
        with locked(self._own / "lock", str(self.root), _WRITE_WAIT), self._refusing(what):
            yield

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{what}: {error.strerror or error} ({self.root}); free some space or check the permissions. Nothing "
                "that was saved before is lost"
            ) from error

    def _recover(self) -> None:
        """Empty the staging folder, unless somebody is writing at this moment."""
        with contextlib.suppress(StoreError, OSError):
            if self._staging.is_dir() and any(self._staging.iterdir()):
                with locked(self._own / "lock", str(self.root)):
                    for path in self._staging.iterdir():
                        remove_tree(path)


def _version_folder(folder: Path, number: int) -> Path:
    return folder / "versions" / f"{number:06d}"


def _versions(folder: Path) -> list[int]:
    """The numbers of the published versions, in order."""
    try:
        names = [path.name for path in (folder / "versions").iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{folder / 'versions'}: cannot be read ({error.strerror or error})") from error
    numbers = sorted(int(name) for name in names if name.isascii() and _NUMBER.fullmatch(name))
    return [n for n in numbers if n and _version_folder(folder, n).is_dir()]


def purpose(name: str, number: int) -> str:
    """What a version is, as its seal says."""
    return f"adapter {name!r}, version {number}"


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
