"""Where things lie in an adapter store, and which names and versions are there. Nothing is written here.

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

import re
from pathlib import Path

from edgelora.errors import StoreError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,9}")


class Layout:
    """The paths of the store at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.own = root / ".edgelora"
        self.staging = self.own / "staging"
        self.locks = self.own / "locks"

    def folder(self, name: str) -> Path:
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
            self.refuse_links(folder, folder / "versions", folder / "training")
            if versions_in(folder):
                raise StoreError(
                    f"{folder / 'name'} is missing; if the folder is {name!r}'s, write the name into that file"
                ) from None
            return folder
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{folder}: its name cannot be read ({error})") from error
        if owner != name:
            raise StoreError(f"{folder} belongs to {owner!r}: on this file system {name!r} is the same folder")
        self.refuse_links(folder, folder / "versions", folder / "training")
        return folder

    def refuse_links(self, *folders: Path) -> None:
        """What is written below a link would lie outside the store."""
        if link := next((folder for folder in folders if folder.is_symlink()), None):
            raise StoreError(
                f"{link} is a link, and nothing outside {self.root} is touched: put the folder itself there"
            )

    def names(self) -> list[str]:
        """The names that have a folder, sorted."""
        if not self.root.is_dir():
            return []
        try:
            return sorted(p.name for p in self.root.iterdir() if _NAME.fullmatch(p.name) and (p / "name").is_file())
        except OSError as error:
            raise StoreError(f"{self.root}: cannot be read ({error.strerror or error})") from error

    def has_versions(self, name: str) -> bool:
        """Whether a version is there, whosever it is."""
        try:
            return bool(versions_in(self.root / name))
        except StoreError:  # asked for by its name it says what is wrong
            return False


def version_folder(folder: Path, number: int) -> Path:
    """Where a version lies in the folder of a name."""
    return folder / "versions" / f"{number:06d}"


def pointer_in(folder: Path) -> int | None:
    """The number in the pointer of a name's folder; None if it is missing or damaged."""
    try:
        pointer = (folder / "current").read_bytes()[:16].decode("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return int(pointer) if _NUMBER.fullmatch(pointer) else None


def versions_in(folder: Path) -> list[int]:
    """The numbers of the published versions, in order."""
    try:
        names = [path.name for path in (folder / "versions").iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{folder / 'versions'}: cannot be read ({error.strerror or error})") from error
    numbers = sorted(int(name) for name in names if name.isascii() and _NUMBER.fullmatch(name))
    return [n for n in numbers if n and version_folder(folder, n).is_dir()]
