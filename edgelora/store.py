"""The adapter store: people, their versions, the one that is current. Where it keeps them: store_layout.py."""

from __future__ import annotations

import contextlib
import datetime
import threading
import uuid
import warnings
from collections.abc import Generator
from pathlib import Path

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
from edgelora.store_info import AdapterInfo, VersionInfo
from edgelora.store_layout import Layout, pointer_in, version_folder, versions_in
from edgelora.store_settings import SETTINGS_FILE, StoreSettings
from edgelora.training_state import unfinished
from edgelora.versions import open_version, read_version, version_files

_WRITE_WAIT, _NAME_WAIT = 30.0, 2.0


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
        self._layout = Layout(self.root)
        self._holders: dict[str, int] = {}
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"{self.root}: not a folder; name another --store")
        self._layout.refuse_links(self._layout.own, self._layout.staging, self._layout.locks)
        self._recover()

    @property
    def settings(self) -> StoreSettings:
        """What is kept at most; the same for every process."""
        return StoreSettings.read(self._layout.own)

    def configure(self, settings: StoreSettings) -> None:
        """Set what is kept at most, from the next save on.

        Raises:
            StoreError: the disk refuses.
        """
        with self._writing("the store's settings cannot be saved"):
            write_atomic(self._layout.own / SETTINGS_FILE, settings.to_bytes(), self._layout.staging)

    def list(self) -> list[str]:
        """The names that have a saved version, sorted."""
        return [name for name in self._layout.names() if self._layout.has_versions(name)]

    def names_of(self, person: str) -> list[str]:
        """The names that belong to a person: the person's own, and those that go on with a plus (`ann+music`).

        What is only a training, with no version yet, is among them.
        """
        return [name for name in self._layout.names() if name == person or name.startswith(f"{person}+")]

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
            folder, current = self._layout.folder(name), self._current(name)
            numbers = versions_in(folder)
            newest = max(numbers, default=0)
            number = next((n for n in (current, newest) if n and self._content(name, n) == files), 0)
            if not number:
                number = newest + 1
                written = version_files(files, self.key, purpose(name, number))
                self._make_room(sum(map(len, written.values())))
                if not activate:
                    self._point(name, current)  # before there is a version that could be taken for it
                publish_folder(version_folder(folder, number), written, self._layout.staging)
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
            for other in reversed([n for n in versions_in(self._layout.folder(name)) if n != version]):
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
            status = version_folder(self._layout.folder(name), version).stat()
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
        if numbers := versions_in(self._layout.folder(name)):
            raise StoreError(
                f"no version of adapter {name!r} is current: {_numbers(numbers)} did not pass its gate; to use it all "
                f"the same: rollback {name} --to {numbers[-1]}"
            )
        known = self.list()
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise StoreError(f"no adapter {name!r} in {self.root}; " + (f"there are {shown}" if known else "it is empty"))

    def newest(self, name: str) -> int:
        """The highest number of a saved version, current or not; 0 if there is none."""
        return max(versions_in(self._layout.folder(name)), default=0)

    def show(self, name: str) -> AdapterInfo:
        """All versions of an adapter; a damaged one says what is wrong with it.

        Raises:
            StoreError: no such adapter.
        """
        numbers = versions_in(self._layout.folder(name))
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
            current, numbers = self._current(name), versions_in(self._layout.folder(name))
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
        folder = self._layout.folder(name)
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

        A name under which nothing was kept in the end leaves no trace.

        Raises:
            StoreError: another holds it, or the store cannot be written.
        """
        self._layout.folder(name)
        self._layout.refuse_links(self._layout.own, self._layout.locks)
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
                self._forget_if_empty(name)

    def state_path(self, name: str) -> Path:
        """The folder for the state of an unfinished training; write there only under `lock`."""
        return self._layout.folder(name) / "training"

    def _held(self, name: str) -> contextlib.AbstractContextManager[None]:
        """`lock`, unless this thread holds it already."""
        mine = self._holders.get(name) == threading.get_ident()
        return contextlib.nullcontext() if mine else self.lock(name, _NAME_WAIT)

    def _lock_file(self, name: str) -> Path:
        return self._layout.locks / name

    def _claimed(self, name: str) -> Path:
        """The folder of a name, made if it is not there. Raises OSError."""
        folder = self._layout.folder(name)
        make_folder(folder)
        if not (folder / "name").exists():
            write_atomic(folder / "name", name.encode(), self._layout.staging)
        make_folder(folder / "versions")
        return folder

    def _forget_if_empty(self, name: str) -> None:
        """Delete the folder of a name under which nothing is kept, as after a training that was refused."""
        with contextlib.suppress(OSError, StoreError):
            folder = self._layout.folder(name)
            held = {path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
            if folder.is_dir() and held <= {folder / "name", folder / "current"}:
                with self._writing(f"adapter {name!r} cannot be removed"):
                    self._discard(folder)
                    remove_tree(self._lock_file(name))

    def _point(self, name: str, number: int) -> None:
        """Make a version current; 0: none. Raises OSError."""
        write_atomic(self._layout.folder(name) / "current", str(number).encode(), self._layout.staging)

    def _discard(self, folder: Path) -> None:
        """Delete a folder, at once as seen from outside. Raises OSError."""
        trash = self._layout.staging / uuid.uuid4().hex
        folder.rename(trash)
        sync_folder(folder.parent)
        remove_tree(trash)

    def _prune(self, name: str) -> None:
        """Delete the oldest versions beyond those that are kept; never the current one. Raises OSError."""
        kept, folder = self.settings.keep_versions, self._layout.folder(name)
        numbers, current = versions_in(folder), self._current(name)
        for number in numbers[: -kept if kept is not None else 0]:
            if number != current:
                self._discard(version_folder(folder, number))

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
        folder = self._layout.folder(name)
        number = pointer_in(folder)
        if number is not None and (not number or version_folder(folder, number).is_dir()):
            return number
        numbers = versions_in(folder)
        intact = (n for n in reversed(numbers) if self._problem(name, n) is None)
        return next(intact, max(numbers, default=0))

    def _open(self, name: str, number: int) -> Adapter:
        folder = self._layout.folder(name)
        path = version_folder(folder, number)
        if not path.is_dir():
            raise StoreError(f"adapter {name!r} has no version {number}; it has {_numbers(versions_in(folder))}")
        try:
            return open_version(path, self.key, purpose(name, number))
        except AdapterError as error:
            others = [n for n in versions_in(folder) if n != number]
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
            return read_version(version_folder(self._layout.folder(name), number), self.key, purpose(name, number))
        except (AdapterError, StoreError):
            return {}

    def _describe(self, name: str, number: int) -> VersionInfo:
        path = version_folder(self._layout.folder(name), number)
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
        self._layout.refuse_links(self._layout.own, self._layout.staging, self._layout.locks)
        with self._refusing(what):
            make_folder(self._layout.staging)
        with locked(self._layout.own / "lock", str(self.root), _WRITE_WAIT), self._refusing(what):
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
            if self._layout.staging.is_dir() and any(self._layout.staging.iterdir()):
                with locked(self._layout.own / "lock", str(self.root)):
                    for path in self._layout.staging.iterdir():
                        remove_tree(path)


def purpose(name: str, number: int) -> str:
    """What a version is, as its seal says."""
    return f"adapter {name!r}, version {number}"


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
