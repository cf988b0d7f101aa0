"""Writing so that a kill or a power cut leaves the old or the new, never a half; locks across processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

from edgelora.errors import StoreError

TEMPORARY_PREFIX = ".tmp-"


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file at `path`: temporary file, fsync, rename, fsync of the folder. Raises OSError.

    A new file is readable by its owner alone; one that is replaced keeps its mode.
    """
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        if path.exists():
            Path(name).chmod(path.stat().st_mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    sync_folder(path.parent)


def publish_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder of files appear at `path` at once and complete; `path` must not exist. Raises OSError."""
    staging = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    try:
        for name, content in files.items():
            with (staging / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(staging)
        staging.rename(path)
    except BaseException:
        remove_folder(staging)
        raise
    sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder of plain files and folders, as far as it can be."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where the system can (POSIX)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Generator[None]:
    """Hold an exclusive lock on the file at `path`, across processes, gone when the process dies.

    Raises:
        StoreError: another process holds it; its process id is shown.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(f"{path}: the lock cannot be opened ({error.strerror})") from error
    try:
        if not _try_lock(descriptor):
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() if os.name != "nt" else ""
            raise StoreError(
                f"{what} is in use by another process{f' ({holder})' if holder else ''}; wait for it or stop it"
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
