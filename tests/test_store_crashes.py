"""The store under kill -9, a full disk and a read-only root: what was saved stays, nothing is half there."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from edgelora.errors import StoreError
from edgelora.store import AdapterStore
from edgelora.store_settings import StoreSettings
from tests.test_store import adapter, value_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")

ROOT = Path(__file__).parents[1]
KILLS = 40


def run(script: str, *arguments: str, lines: str = "") -> str:
    """The standard output of a Python script that may import the project and its tests."""
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        input=lines,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


# For each delay on standard input: fork a child that saves and removes without end, and kill it after the
# delay. The child notes in a log what it is about to remove and what has returned; the log outlives it.
KILLING = """
    import itertools, os, shutil, signal, sys, time
    from edgelora.store import AdapterStore
    from tests.test_store import adapter

    def work(root, log, first):
        store = AdapterStore(root)
        note = lambda *words: os.write(log, (" ".join(map(str, words)) + "\\n").encode())
        note("started")
        for value in itertools.count(first):
            note("saved", "ann", store.save("ann", adapter(value)), value)
            note("saving", "bob")
            note("saved", "bob", store.save("bob", adapter(value)), value)
            note("removing", "bob")
            store.remove("bob")
            note("removed", "bob")

    root, path = sys.argv[1:]
    adapter(0)
    for kill, line in enumerate(sys.stdin):
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        size = os.fstat(log).st_size
        child = os.fork()
        if child == 0:
            work(root, log, 1000 * (kill + 1))
        while os.fstat(log).st_size == size:
            time.sleep(0.0005)
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(log)
        os.rename(path, f"{path}.{kill}")
        if os.path.isdir(root):
            shutil.copytree(root, f"{root}.{kill}")
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store and the log as they were after each kill."""
    folder = tmp_path_factory.mktemp("killed")
    AdapterStore(folder / "store").configure(StoreSettings(keep_versions=None))
    rng = random.Random(5)
    delays = "".join(f"{rng.uniform(0, 0.3)}\n" for _ in range(KILLS))
    run(KILLING, str(folder / "store"), str(folder / "log"), lines=delays)
    return folder


def notes(folder: Path, kill: int) -> list[list[str]]:
    """The complete lines of the log of one child."""
    text = (folder / f"log.{kill}").read_text()
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]


def test_no_save_that_returned_is_missing_and_no_version_is_half_there(killed: Path):
    expected: dict[int, int] = {}
    for kill in range(KILLS):
        for note in notes(killed, kill):
            if note[:2] == ["saved", "ann"]:
                expected[int(note[2])] = int(note[3])
        root = killed / f"store.{kill}"
        if not expected and not root.exists():
            continue
        store = AdapterStore(root)
        if expected:
            info = store.show("ann")
            assert [v.problem for v in info.versions] == [None] * len(info.versions)
            found = {v.number: int(v.training["steps"]) for v in info.versions}
            assert found.items() >= expected.items()
            assert info.current >= max(expected)
            assert len(found) - len(expected) <= kill + 1  # at most the one that each kill interrupted
        assert not list((root / ".edgelora" / "staging").glob("*"))
    assert len(expected) > KILLS / 2, "the children were killed before they did anything"


def test_a_removal_that_was_killed_is_done_or_not_begun(killed: Path):
    seen: set[str] = set()
    for kill in range(KILLS):
        mine = [note for note in notes(killed, kill) if "bob" in note]
        if not mine:
            continue
        store = AdapterStore(killed / f"store.{kill}")
        seen.add(mine[-1][0])
        if mine[-1][0] == "removed":
            assert not store.exists("bob")
        elif mine[-1][0] == "saved":
            assert value_of(store.load("bob")) == int(mine[-1][3])
        if store.exists("bob"):
            assert all(v.problem is None for v in store.show("bob").versions)
    assert len(seen) > 1


FULL = """
    import resource, sys
    from edgelora.errors import StoreError
    from edgelora.store import AdapterStore
    from tests.test_store import adapter, value_of

    store = AdapterStore(sys.argv[1])
    store.save("ann", adapter(0))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = 0
    for limit in [0, 1, 2, 100, 300, 500, 600, 700, 800, 900, 1000, 1200, 1500]:
        for name in ("ann", f"new-{limit}"):
            before = {n: value_of(store.load(n)) for n in store.list()}
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
            try:
                store.save(name, adapter(1000 + limit))
                before[name] = 1000 + limit
            except StoreError as error:
                assert "Nothing that was saved before is lost" in str(error), error
                refused += 1
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            for again in (store, AdapterStore(sys.argv[1])):
                assert {n: value_of(again.load(n)) for n in again.list()} == before, (limit, name)
    number = store.save("ann", adapter(7))
    assert value_of(AdapterStore(sys.argv[1]).load("ann")) == 7
    print(refused)
"""


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path):
    refused = int(run(FULL, str(tmp_path / "store")))
    assert refused > 10
    assert not list((tmp_path / "store" / ".edgelora" / "staging").iterdir())


READ_ONLY = """
    import os, sys
    from edgelora.errors import StoreError
    from edgelora.store import AdapterStore
    from tests.test_store import adapter, value_of

    root = sys.argv[1]
    assert adapter(3).points and AdapterStore(root).show("ann")  # imports all that is needed while it may be read
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    store = AdapterStore(root)
    assert store.list() == ["ann"]
    assert value_of(store.load("ann")) == 2
    assert value_of(store.load("ann", 1)) == 1
    for change in (
        lambda: store.save("ann", adapter(3)),
        lambda: store.save("bob", adapter(3)),
        lambda: store.rollback("ann"),
        lambda: store.remove("ann"),
        lambda: store.lock("ann").__enter__(),
    ):
        try:
            change()
        except StoreError as error:
            assert root in str(error)
            continue
        raise SystemExit("a read-only store was written")
    assert value_of(store.load("ann")) == 2
"""


def test_a_read_only_store_is_read_and_refuses_to_be_written():
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: another user must reach it
        Path(folder).chmod(0o755)
        root = Path(folder) / "store"
        store = AdapterStore(root)
        store.save("ann", adapter(1))
        store.save("ann", adapter(2))
        places = [root, *(p for p in root.rglob("*") if p.is_dir())]
        for place in places:
            place.chmod(0o555)
        for file in root.rglob("*"):
            if file.is_file():
                file.chmod(0o444)
        try:
            run(READ_ONLY, str(root))
        finally:
            for place in places:
                place.chmod(0o755)
        assert store.list() == ["ann"]
        with pytest.raises(StoreError):
            store.load("bob")
