"""All that a store holds of one person: taken out, as a store of its own, or deleted."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from edgelora.errors import AdapterError, StoreError
from edgelora.files import TEMPORARY_PREFIX, make_folder, publish_folder, remove_tree, sync_folder, write_atomic
from edgelora.sealing import DamagedSeal, unsealed
from edgelora.store import AdapterStore, purpose
from edgelora.training_state import STATE_FILE, state_purpose
from edgelora.versions import read_version, version_files


def names_of(store: AdapterStore, person: str) -> list[str]:
    """The names that belong to a person.

    Raises:
        StoreError: there are none.
    """
    names = store.names_of(person)
    if not names:
        raise StoreError(f"nothing in {store.root} belongs to {person!r}; `adapters list` shows the names")
    return names


def export_names(store: AdapterStore, names: list[str], target: Path) -> list[Path]:
    """Write all that belongs to these names into a new folder, which is a store without a key; returns its files.

    Every version with its number, the pointer, the state of an unfinished training, caches. A damaged version is
    copied as it is.

    Raises:
        StoreError: the folder exists, an adapter is not there, the key is not its own, or the disk refuses.
    """
    if target.exists():
        raise StoreError(f"{target} exists: name a folder that is not there yet")
    temporary = target.absolute().with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        for name in names:
            _copy(store, name, temporary / name)
        temporary.rename(target)
        sync_folder(target.absolute().parent)
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        remove_tree(temporary)
    return sorted(path for path in target.rglob("*") if path.is_file())


def remove_names(store: AdapterStore, names: list[str]) -> None:
    """Delete all that belongs to these names, one after the other. Raises StoreError as `AdapterStore.remove` does."""
    for name in names:
        store.remove(name)


def _copy(store: AdapterStore, name: str, target: Path) -> None:
    """One name's folder, decrypted. Raises OSError."""
    training = store.state_path(name)
    source = training.parent
    if not source.is_dir():
        store.current_version(name)  # raises, with the known names
    make_folder(target / "versions")
    write_atomic(target / "name", name.encode())
    for version in sorted(p for p in (source / "versions").glob("*") if p.is_dir() and not p.is_symlink()):
        publish_folder(target / "versions" / version.name, _version(store, name, version))
    if (source / "current").exists():
        write_atomic(target / "current", (source / "current").read_bytes())
    for path in sorted(training.iterdir()) if training.is_dir() else ():
        if path.is_symlink() or not path.is_file():
            continue
        make_folder(target / "training")
        if path.name != STATE_FILE:
            shutil.copyfile(path, target / "training" / path.name)
            continue
        try:
            content = unsealed(store.key, path.read_bytes(), state_purpose(path))
        except DamagedSeal as error:
            raise StoreError(f"{path}: {error}") from error
        write_atomic(target / "training" / path.name, content)


def _version(store: AdapterStore, name: str, path: Path) -> dict[str, bytes]:
    try:
        return version_files(read_version(path, store.key, purpose(name, int(path.name))), None, "")
    except (AdapterError, ValueError):
        return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and not file.is_symlink()}
