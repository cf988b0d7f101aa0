"""The adapter store: what was saved is found again under its own name, whatever is asked of it in between."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from edgelora.adapter import TENSORS_FILE, Adapter, new_adapter, to_files
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, StoreError, StoreWarning
from edgelora.store import AdapterStore
from edgelora.versions import version_files
from tests.tiny_manifest import WITHOUT_HEAD


def adapter(value: int) -> Adapter:
    """A small adapter that differs for each value."""
    fresh = new_adapter(WITHOUT_HEAD, LoraConfig(r=1, target_modules=("0.attention.self.query",)))
    tensors = {name: np.full_like(tensor, value) for name, tensor in fresh.tensors.items()}
    return replace(fresh, tensors=tensors, training={"steps": value, "history": [{"epoch": 1, "eval_accuracy": 0.5}]})


def value_of(one: Adapter) -> int:
    return int(one.training["steps"])


def everything(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and "lock" not in p.name}


def test_opening_and_asking_create_nothing(tmp_path: Path):
    store = AdapterStore(tmp_path / "store")
    assert store.list() == []
    assert not store.exists("ann")
    with pytest.raises(StoreError, match=r"no adapter 'ann'.*empty"):
        store.load("ann")
    assert not (tmp_path / "store").exists()


def test_what_is_saved_is_loaded_by_another_store(tmp_path: Path):
    assert AdapterStore(tmp_path).save("ann", adapter(1)) == 1
    loaded = AdapterStore(tmp_path).load("ann")
    assert to_files(loaded) == to_files(adapter(1))


def test_saving_the_same_again_is_no_new_version(tmp_path: Path):
    store = AdapterStore(tmp_path)
    assert [store.save("ann", adapter(v)) for v in (1, 1, 2, 2, 1)] == [1, 1, 2, 2, 3]
    assert store.save("ann", store.load("ann")) == 3


def test_rollback_moves_the_pointer_and_deletes_nothing(tmp_path: Path):
    store = AdapterStore(tmp_path)
    for value in (1, 2, 3):
        store.save("ann", adapter(value))
    assert store.rollback("ann") == 2
    assert value_of(store.load("ann")) == 2
    assert store.rollback("ann") == 1
    with pytest.raises(StoreError, match="no version before 1"):
        store.rollback("ann")
    with pytest.raises(StoreError, match="no version 9; it has 1, 2, 3"):
        store.rollback("ann", 9)
    assert store.rollback("ann", 3) == 3
    store.rollback("ann", 1)
    assert store.save("ann", adapter(4)) == 4
    assert [value_of(store.load("ann", version)) for version in (1, 2, 3, 4)] == [1, 2, 3, 4]
    with pytest.raises(StoreError, match="no version 5; it has 1, 2, 3, 4"):
        store.load("ann", 5)


def test_show_tells_of_each_version(tmp_path: Path):
    store = AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    store.save("ann", adapter(2))
    store.rollback("ann")
    info = store.show("ann")
    assert (info.name, info.current, [v.number for v in info.versions]) == ("ann", 1, [1, 2])
    first = info.versions[0]
    assert first.size == sum(map(len, version_files(to_files(adapter(1)), None, "").values()))
    assert info.size == sum(v.size for v in info.versions)
    assert first.created.endswith("+00:00")
    assert first.summary() == "1 steps, accuracy 0.500"
    assert first.labels is None
    assert info.to_dict()["versions"][1]["training"]["steps"] == 2


def test_a_damaged_version_is_named_and_hides_no_other(tmp_path: Path):
    store = AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    store.save("ann", adapter(2))
    (tmp_path / "ann" / "versions" / "000002" / TENSORS_FILE).write_bytes(b"damaged")
    with pytest.raises(AdapterError, match=r"(?s)000002.*roll back to another version \(1\)"):
        store.load("ann", 2)
    with pytest.warns(StoreWarning, match=r"(?s)000002.*version 1 is used"):
        assert value_of(store.load("ann")) == 1
    info = store.show("ann")
    assert [v.problem is None for v in info.versions] == [True, False]
    assert info.versions[1].summary().startswith("damaged")
    assert store.list() == ["ann"]
    assert store.rollback("ann") == 1
    assert value_of(store.load("ann")) == 1
    assert store.save("ann", adapter(3)) == 3


@pytest.mark.parametrize("pointer", [None, b"", b"\xff\xff", b"7", b"-1", b"2x", b"1" * 400])
def test_without_a_good_pointer_the_highest_intact_version_is_current(tmp_path: Path, pointer: bytes | None):
    store = AdapterStore(tmp_path)
    for value in (1, 2, 3):
        store.save("ann", adapter(value))
    (tmp_path / "ann" / "versions" / "000003" / TENSORS_FILE).unlink()
    (tmp_path / "ann" / "current").unlink()
    if pointer is not None:
        (tmp_path / "ann" / "current").write_bytes(pointer)
    assert value_of(AdapterStore(tmp_path).load("ann")) == 2
    assert store.save("ann", adapter(4)) == 4
    assert value_of(store.load("ann")) == 4


def test_opening_clears_leftovers_and_nothing_else(tmp_path: Path):
    store = AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    before = everything(tmp_path)
    staging = tmp_path / ".edgelora" / "staging"
    shutil.copytree(tmp_path / "ann", staging / ".tmp-1")
    (staging / "half").write_bytes(b"1")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / ".tmp-mine").write_bytes(b"")
    assert AdapterStore(tmp_path).list() == ["ann"]
    assert everything(tmp_path) == before | {"notes/.tmp-mine": b""}


def test_training_state_is_kept_and_its_leftovers_are_not(tmp_path: Path):
    store = AdapterStore(tmp_path)
    with store.lock("ann"):
        state = store.state_path("ann")
        state.mkdir()
        (state / "state").write_bytes(b"1")
        (state / ".tmp-1").write_bytes(b"half")
    assert store.list() == []
    with AdapterStore(tmp_path).lock("ann"):
        assert [p.name for p in state.iterdir()] == ["state"]
    store.save("ann", adapter(1))
    store.remove("ann")
    assert not state.exists()


def test_a_lock_under_which_nothing_was_kept_leaves_no_trace_of_a_person(tmp_path: Path):
    store = AdapterStore(tmp_path)
    with pytest.raises(ZeroDivisionError), store.lock("ann"):
        raise ZeroDivisionError
    with store.lock("bob"):
        store.state_path("bob").mkdir()
    assert not [p for p in tmp_path.rglob("*") if p.name in ("ann", "bob")]
    store.save("ann", adapter(1))
    with pytest.raises(ZeroDivisionError), store.lock("ann"):
        raise ZeroDivisionError
    assert value_of(store.load("ann")) == 1


def test_removal_leaves_no_trace_of_a_person(tmp_path: Path):
    store = AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    store.save("bob", adapter(2))
    store.remove("ann")
    assert store.list() == ["bob"]
    assert not [p for p in tmp_path.rglob("*") if "ann" in p.name]
    with pytest.raises(StoreError, match=r"no adapter 'ann'.*bob"):
        store.remove("ann")
    assert store.save("ann", adapter(3)) == 1


def test_a_lock_keeps_others_from_training_saving_and_removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgelora.store._NAME_WAIT", 0.05)
    store, other = AdapterStore(tmp_path), AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    with store.lock("ann"):
        for refused in (
            lambda: other.save("ann", adapter(2)),
            lambda: other.remove("ann"),
            lambda: other.lock("ann").__enter__(),
        ):
            with pytest.raises(StoreError, match="'ann' is in use by process"):
                refused()
        assert store.save("ann", adapter(3)) == 2
        assert value_of(other.load("ann")) == 3
        assert other.save("bob", adapter(1)) == 1
    assert other.save("ann", adapter(4)) == 3


def test_threads_of_one_store_are_others_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("edgelora.store._NAME_WAIT", 0.05)
    store = AdapterStore(tmp_path)
    refused: list[str] = []

    def save() -> None:
        try:
            store.save("ann", adapter(1))
        except StoreError as error:
            refused.append(str(error))

    with store.lock("ann"):
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert not store.exists("ann")


def test_saves_from_many_threads_all_arrive(tmp_path: Path):
    names = [f"user-{i}" for i in range(4)]

    def save(name: str) -> None:
        for value in range(5):
            AdapterStore(tmp_path).save(name, adapter(value))

    threads = [threading.Thread(target=save, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: AdapterStore(tmp_path).current_version(name) for name in names} == dict.fromkeys(names, 5)


BAD_NAMES = [
    "", ".", "..", "../ann", "ann/bob", "/etc", "a\\b", "ann\x00", "ann\n", " ann", "ann ", ".ann", "-ann", "ann:x",
    "a" * 129, "änn", "ａｎｎ", "CON", "nul.txt", "com1", "Lpt9.x", "ann.", "~", "$HOME", "a*b", "%2e%2e", "\u202eann",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_leave_the_store_are_refused_everywhere(tmp_path: Path, name: str):
    store = AdapterStore(tmp_path / "store")
    calls: list[Any] = [
        lambda: store.save(name, adapter(1)),
        lambda: store.load(name),
        lambda: store.show(name),
        lambda: store.remove(name),
        lambda: store.rollback(name),
        lambda: store.exists(name),
        lambda: store.state_path(name),
        lambda: store.current_version(name),
        lambda: store.lock(name).__enter__(),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="cannot name an adapter"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "0", "ann@home.example", "user+1", "a" * 128, "a..b", "console", "x-_."[:3]])
def test_user_ids_are_names(tmp_path: Path, name: str):
    store = AdapterStore(tmp_path)
    store.save(name, adapter(1))
    assert store.list() == [name]


@given(st.text(max_size=12))
def test_no_name_reaches_outside(tmp_path_factory: pytest.TempPathFactory, name: str):
    outer = tmp_path_factory.mktemp("outer")
    store = AdapterStore(outer / "store")
    try:
        store.save(name, adapter(1))
    except StoreError:
        assert list(outer.iterdir()) == []
    else:
        assert [p.name for p in outer.iterdir()] == ["store"]
        assert store.list() == [name]


def test_a_folder_that_another_name_owns_is_refused(tmp_path: Path):
    """What a file system that ignores case does when it is asked for "ANN"."""
    store = AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    (tmp_path / "ANN").symlink_to(tmp_path / "ann")
    for call in (store.load, store.show, store.remove, store.exists, lambda n: store.save(n, adapter(2))):
        with pytest.raises(StoreError, match="belongs to 'ann'"):
            call("ANN")
    assert value_of(store.load("ann")) == 1


def test_versions_without_a_name_are_refused_with_the_remedy(tmp_path: Path):
    store = AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    (tmp_path / "ann" / "name").unlink()
    with pytest.raises(StoreError, match="write the name into that file"):
        store.load("ann")
    (tmp_path / "ann" / "name").write_text("ann")
    assert value_of(store.load("ann")) == 1


def test_a_root_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="not a folder"):
        AdapterStore(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be"):
        AdapterStore(tmp_path / "file" / "store").save("ann", adapter(1))


def test_foreign_folders_are_no_adapters_and_are_left_alone(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    store = AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    assert store.list() == ["ann"]
    assert list((tmp_path / "photos").iterdir()) == []


class StoreMachine(RuleBasedStateMachine):
    """The store against a dictionary: name -> (versions, current)."""

    names = Bundle("names")

    @initialize()
    def start(self) -> None:
        import tempfile

        self.root = Path(tempfile.mkdtemp(prefix="edgelora-store-"))
        self.store = AdapterStore(self.root)
        self.model: dict[str, dict[int, int]] = {}
        self.current: dict[str, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    @rule(target=names, name=st.sampled_from(["ann", "bob", "a.b", "Ann"]))
    def name(self, name: str) -> str:
        return name

    @rule(name=names, value=st.integers(0, 3))
    def save(self, name: str, value: int) -> None:
        versions = self.model.setdefault(name, {})
        number = self.store.save(name, adapter(value))
        newest = max(versions, default=0)
        if self.current.get(name) and versions[self.current[name]] == value:
            assert number == self.current[name]
        elif newest and versions[newest] == value:
            assert number == newest
            self.current[name] = newest
        else:
            assert number == max(versions, default=0) + 1
            versions[number] = value
            self.current[name] = number

    @rule(name=names, version=st.none() | st.integers(1, 4))
    def rollback(self, name: str, version: int | None) -> None:
        versions = self.model.get(name, {})
        older = [n for n in versions if n < self.current.get(name, 0)]
        target = version if version is not None else max(older, default=0)
        if target in versions:
            assert self.store.rollback(name, version) == target
            self.current[name] = target
        else:
            with pytest.raises(StoreError):
                self.store.rollback(name, version)

    @rule(name=names)
    def remove(self, name: str) -> None:
        if name in self.model:
            self.store.remove(name)
            del self.model[name], self.current[name]
        else:
            with pytest.raises(StoreError):
                self.store.remove(name)

    @rule()
    def reopen(self) -> None:
        self.store = AdapterStore(self.root)

    @rule(name=names)
    def lose_the_pointer(self, name: str) -> None:
        if name in self.model:
            (self.root / name / "current").unlink(missing_ok=True)
            self.current[name] = max(self.model[name])

    @invariant()
    def all_is_there(self) -> None:
        if not hasattr(self, "root"):
            return
        assert self.store.list() == sorted(self.model)
        for name, versions in self.model.items():
            assert self.store.current_version(name) == self.current[name]
            assert value_of(self.store.load(name)) == versions[self.current[name]]
            assert {n: value_of(self.store.load(name, n)) for n in versions} == versions


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)


@pytest.mark.parametrize(
    "place", ["ann", "ann/versions", "ann/training", ".edgelora", ".edgelora/staging", ".edgelora/locks"]
)
def test_a_link_in_a_store_leads_nowhere(tmp_path: Path, place: str):
    """Somebody's store may hold links; nothing that they point to is written or deleted."""
    outside = tmp_path / "outside"
    shutil.copytree(_saved(tmp_path / "other") / "ann", outside)
    before = everything(outside)
    store = AdapterStore(_saved(tmp_path / "store"))
    linked = store.root / place
    if linked.exists():
        shutil.rmtree(linked)
    linked.symlink_to(outside)
    for act in (
        lambda: AdapterStore(store.root),
        lambda: store.save("ann", adapter(2)),
        lambda: store.rollback("ann", 1),
        lambda: store.state_path("ann"),
        lambda: store.remove("ann"),
    ):
        try:
            act()
        except StoreError as error:
            assert "is a link" in str(error)
    assert everything(outside) == before


def test_a_link_to_itself_hides_no_other_adapter(tmp_path: Path):
    store = AdapterStore(_saved(tmp_path))
    store.save("bob", adapter(2))
    shutil.rmtree(tmp_path / "ann" / "versions")
    (tmp_path / "ann" / "versions").symlink_to("versions")
    assert store.list() == ["bob"]
    for ask in (store.load, store.show, store.exists, store.rollback):
        with pytest.raises(StoreError, match="versions"):
            ask("ann")


def test_a_lock_that_is_a_link_does_not_truncate_what_it_points_to(tmp_path: Path):
    (tmp_path / "precious").write_text("precious")
    store = AdapterStore(_saved(tmp_path / "store"))
    for lock in ("locks/ann", "lock"):
        path = store.root / ".edgelora" / lock
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "precious")
        with pytest.raises(StoreError, match="lock cannot be opened"):
            store.save("ann", adapter(2))
        path.unlink()
    assert (tmp_path / "precious").read_text() == "precious"
    assert store.save("ann", adapter(2)) == 2


def _saved(root: Path) -> Path:
    AdapterStore(root).save("ann", adapter(1))
    return root
