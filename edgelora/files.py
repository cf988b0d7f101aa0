"""Writing so that a kill or a power cut leaves the old or the new, never a half; locks across processes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path

from edgelora.errors import StoreError

TEMPORARY_PREFIX = ".tmp-"
_POLL_SECONDS = 0.01
_NOT_A_LINK = getattr(os, "O_NOFOLLOW", 0)  # the holder's id is written into the file: into no other than this one
_LOCK_OFFSET = 1 << 30  # on Windows a locked byte cannot be read: lock one beyond the holder's id


def write_atomic(path: Path, content: bytes, staging: Path | None = None) -> None:
    """Replace the file at `path`: temporary file, fsync, rename, fsync of the folder.

    The temporary lies in `staging`, a folder of the same file system (default: beside the file).

    Raises:
        OSError: the disk refuses; the file is as it was.
    """
    temporary = _temporary(staging or path.parent)
    try:
        _write_synced(temporary, content)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def publish_folder(path: Path, files: Mapping[str, bytes], staging: Path | None = None) -> None:
    """Make a folder of files appear at `path`, at once and complete; there must be none.

    It is written in `staging`, a folder of the same file system (default: beside it).

    Raises:
        OSError: the disk refuses, or `path` exists; there is nothing new at `path`.
    """
    temporary = _temporary(staging or path.parent)
    try:
        temporary.mkdir()
        for name, content in files.items():
            _write_synced(temporary / name, content)
        sync_folder(temporary)
        temporary.rename(path)
    except BaseException:
        remove_tree(temporary)
        raise
    sync_folder(path.parent)


def remove_tree(path: Path) -> None:
    """Delete a file, a link, or a folder with all that it holds, as far as it can be; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def remove_temporaries(folder: Path) -> None:
    """Delete what interrupted writes left in a folder; nobody may be writing there."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(TEMPORARY_PREFIX):
                remove_tree(path)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, durably, for their owner alone (0700). Raises OSError."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where the system and the file system can. Raises OSError."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be entered and not listed, such as /home
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, what: str, wait_seconds: float = 0.0) -> Generator[None]:
    """Hold an exclusive lock on the file at `path`, across processes and threads; it dies with the process.

    The file may be deleted by the one who holds it.

    Raises:
        StoreError: somebody else holds it for longer than `wait_seconds`; the holder's process id is shown.
    """
    descriptor = _acquire(path, what, time.monotonic() + wait_seconds)
    try:
        with contextlib.suppress(OSError):  # a full disk must not keep anybody from a lock
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path, what: str, deadline: float) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NOT_A_LINK, 0o666)
        except OSError as error:
            raise StoreError(f"{path}: the lock cannot be opened ({error.strerror or error})") from error
        if _try_lock(descriptor):
            if _is_at(descriptor, path):
                return descriptor
            os.close(descriptor)
            continue
        holder = _read_holder(descriptor)
        os.close(descriptor)
        if time.monotonic() >= deadline:
            raise StoreError(f"{what} is in use by {holder}; wait for it or stop it")
        time.sleep(_POLL_SECONDS)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: its last holder may have deleted it."""
    try:
        return os.name == "nt" or os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _read_holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        pid = os.read(descriptor, 32).decode("ascii", "replace").strip()
    except OSError:
        pid = ""
    return f"process {pid}" if pid.isdigit() else "another process"


def _try_lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _LOCK_OFFSET, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _temporary(folder: Path) -> Path:
    return folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
