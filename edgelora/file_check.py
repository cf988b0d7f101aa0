"""Whether the files of a folder are those that a manifest names: large ones are read beside other work."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path

from edgelora.errors import BundleError
from edgelora.manifest import FileEntry

LARGE = 4 << 20
_PIECE = 1 << 20  # much less, and the thread would wait for Python's lock more often than for the file


class FileCheck:
    """Compares files with their entries: all but the contents of large ones when it is made, these in a thread.

    Neither reading nor hashing holds Python's lock, so that with a second core they take no time of the first.
    `contents` False compares names and sizes alone.

    Raises:
        BundleError: what is found at once, and then all that there is.
    """

    def __init__(self, folder: Path, files: Mapping[str, FileEntry], contents: bool) -> None:
        self._folder, self._files = folder, files
        sizes = {name: _problem_of_size(folder, name, entry) for name, entry in files.items()}
        read = [name for name, problem in sizes.items() if contents and problem is None]
        self._large = [name for name in read if files[name].size > LARGE]
        self._late: dict[str, str | None] = {}
        self._thread = threading.Thread(target=self._read_large, daemon=True)
        self._thread.start()
        self._at_once = sizes | self._read([name for name in read if name not in self._large])
        if any(self._at_once.values()):
            self.wait()

    def wait(self) -> None:
        """Return once every file is known to be as its entry says.

        Raises:
            BundleError: some are not; it names them all.
        """
        self._thread.join()
        if len(self._late) < len(self._large):  # a fork has no thread of its parent's: nothing has read to the end
            self._read_large()
        problems = [f"  {problem}" for problem in (self._at_once | self._late).values() if problem is not None]
        if problems:
            raise BundleError(
                "\n".join([f"{self._folder}: damaged", *problems, "copy the bundle again or convert the model again"])
            )

    def _read_large(self) -> None:
        self._late.update(self._read(self._large))

    def _read(self, names: list[str]) -> dict[str, str | None]:
        return {name: _problem_of_content(self._folder / name, self._files[name]) for name in names}


def _problem_of_size(folder: Path, name: str, entry: FileEntry) -> str | None:
    if Path(name).name != name or name in ("", ".", ".."):
        return f"{name!r} is not a plain file name"
    try:
        size = (folder / name).stat().st_size
    except OSError as error:
        return f"{name}: {error.strerror or error}"
    if size != entry.size:
        return f"{name} has {size:,} bytes where the manifest says {entry.size:,}"
    return None


def _problem_of_content(path: Path, entry: FileEntry) -> str | None:
    digest, piece = hashlib.sha256(), memoryview(bytearray(min(_PIECE, entry.size + 1)))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                digest.update(piece[:count])
    except OSError as error:
        return f"{path.name}: {error.strerror or error}"
    return (
        None if digest.hexdigest() == entry.sha256 else f"{path.name} does not have the sha256 that the manifest gives"
    )
