"""Atomic writes leave the old or the new; locks hold across processes and threads and die with their holder."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgelora.errors import StoreError
from edgelora.files import (
    TEMPORARY_PREFIX,
    locked,
    make_folder,
    publish_folder,
    remove_temporaries,
    remove_tree,
    write_atomic,
)

ROOT = Path(__file__).parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_replaces_the_content_and_leaves_nothing_else(tmp_path: Path):
    file = tmp_path / "file"
    for content in (b"one", b"", b"two"):
        write_atomic(file, content)
        assert file.read_bytes() == content
    assert names(tmp_path) == ["file"]


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_bytes(b"old")
    with pytest.raises(OSError):
        write_atomic(tmp_path / "folder", b"new")
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "kept").read_bytes() == b"old"
    with pytest.raises(OSError):
        write_atomic(tmp_path / "missing" / "file", b"new")


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_the_umask_decides_who_may_read(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
        publish_folder(tmp_path / "folder", {"inner": b""})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "folder" / "inner").stat().st_mode) == 0o640


@pytest.mark.parametrize("staged", [False, True])
def test_a_folder_appears_whole(tmp_path: Path, staged: bool):
    staging = tmp_path / "staging"
    staging.mkdir()
    publish_folder(tmp_path / "folder", {"a": b"1", "b": b"2"}, staging if staged else None)
    assert {p.name: p.read_bytes() for p in (tmp_path / "folder").iterdir()} == {"a": b"1", "b": b"2"}
    assert names(tmp_path) == ["folder", "staging"]
    assert names(staging) == []


def test_a_folder_that_exists_is_left_alone(tmp_path: Path):
    publish_folder(tmp_path / "folder", {"a": b"1"})
    with pytest.raises(OSError):
        publish_folder(tmp_path / "folder", {"a": b"2"})
    assert (tmp_path / "folder" / "a").read_bytes() == b"1"
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_written_whole_does_not_appear(tmp_path: Path):
    with pytest.raises(OSError):
        publish_folder(tmp_path / "folder", {"a": b"1", "no/such/place": b"2"})
    assert names(tmp_path) == []


def test_removal_does_not_follow_links(tmp_path: Path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"1")
    (tmp_path / "doomed").mkdir()
    (tmp_path / "doomed" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("doomed", "link", "missing"):
        remove_tree(tmp_path / name)
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["file"]


def test_only_temporaries_are_removed(tmp_path: Path):
    (tmp_path / f"{TEMPORARY_PREFIX}1").write_bytes(b"")
    (tmp_path / f"{TEMPORARY_PREFIX}2").mkdir()
    (tmp_path / "kept").write_bytes(b"")
    remove_temporaries(tmp_path)
    remove_temporaries(tmp_path / "missing")
    assert names(tmp_path) == ["kept"]


def test_folders_are_made_with_their_parents(tmp_path: Path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):
        make_folder(tmp_path / "file" / "a")


HOLDER = """
import sys, time
from pathlib import Path
from edgelora.files import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_of_another_process_is_reported_with_its_id_and_dies_with_it(tmp_path: Path):
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            with (
                pytest.raises(StoreError, match=rf"the adapter is in use by process {process.pid}\b"),
                locked(path, "the adapter"),
            ):
                pass
        finally:
            process.send_signal(signal.SIGKILL)
    with locked(path, "the adapter"):
        assert path.read_text() == str(os.getpid())


def test_a_lock_excludes_threads_and_waits(tmp_path: Path):
    path, order = tmp_path / "lock", []
    held = threading.Event()

    def hold() -> None:
        with locked(path, "it"):
            held.set()
            order.append("first")
            threading.Event().wait(0.2)
            order.append("first leaves")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with pytest.raises(StoreError, match="in use"), locked(path, "it", wait_seconds=0.02):
        pass
    with locked(path, "it", wait_seconds=10):
        order.append("second")
    thread.join()
    assert order == ["first", "first leaves", "second"]


def test_a_lock_survives_the_deletion_of_its_file_by_the_holder(tmp_path: Path):
    """Whoever waits for the deleted file gets the lock of the file that is there now."""
    path, inside = tmp_path / "lock", []
    started = threading.Event()

    def use(delete: bool) -> None:
        with locked(path, "it", wait_seconds=10):
            started.set()
            inside.append("in")
            threading.Event().wait(0.02)
            if delete:
                path.unlink()
            inside.append("out")

    threads = [threading.Thread(target=use, args=(i % 2 == 0,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == ["in", "out"] * 8


def test_a_lock_that_cannot_be_opened_is_a_store_error(tmp_path: Path):
    with pytest.raises(StoreError, match="cannot be opened"), locked(tmp_path / "missing" / "lock", "it"):
        pass


def test_an_error_inside_releases_the_lock(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock", "it"):
        raise ZeroDivisionError
    with locked(tmp_path / "lock", "it"):
        pass
