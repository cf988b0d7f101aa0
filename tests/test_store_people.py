"""What a store keeps, gives out and forgets: versions, caches, people; and what a key protects."""

from __future__ import annotations

import builtins
import hashlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgelora.adapter import TENSORS_FILE, to_files
from edgelora.errors import AdapterError, ConfigError, EdgeLoraError, StoreError, StoreWarning
from edgelora.person import export_names, names_of, remove_names
from edgelora.sealing import Key
from edgelora.store import AdapterStore
from edgelora.store_settings import StoreSettings
from tests.test_store import adapter, everything, value_of

SECRET = bytes(range(32))


def damage(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- versions --------------------------------------------------------------------------------------------------


def test_so_many_versions_are_kept_and_the_current_one(tmp_path: Path):
    store = AdapterStore(tmp_path)
    assert store.settings.keep_versions == 16
    store.configure(StoreSettings(keep_versions=3))
    for value in range(1, 6):
        store.save("ann", adapter(value))
    assert [v.number for v in AdapterStore(tmp_path).show("ann").versions] == [3, 4, 5]
    store.rollback("ann", 3)
    for value in (6, 7, 8):
        assert store.save("ann", adapter(value), activate=False) == value
    assert [v.number for v in store.show("ann").versions] == [3, 6, 7, 8]
    assert value_of(store.load("ann")) == 3, "the current version is not pruned"
    store.configure(StoreSettings(keep_versions=None))
    for value in range(10, 40):
        store.save("bob", adapter(value))
    assert len(store.show("bob").versions) == 30


def test_a_version_that_is_not_activated_is_not_used(tmp_path: Path):
    store = AdapterStore(tmp_path)
    assert store.save("ann", adapter(1), activate=False) == 1
    assert not store.exists("ann")
    assert store.list() == ["ann"]
    assert store.show("ann").current == 0
    with pytest.raises(StoreError, match=r"no version of adapter 'ann' is current.*rollback ann --to 1"):
        store.load("ann")
    assert store.rollback("ann", 1) == 1
    assert value_of(store.load("ann")) == 1
    (tmp_path / "ann" / "current").unlink()
    assert store.save("ann", adapter(2), activate=False) == 2
    assert value_of(store.load("ann")) == 1, "a lost pointer does not activate what was held back"
    assert store.save("ann", adapter(2)) == 2
    assert value_of(store.load("ann")) == 2


@pytest.mark.parametrize(
    "content", [b"", b"[", b"[]", b'{"keep_versions": 0}', b'{"keep_versions": true}', b'{"x": 1}']
)
def test_damaged_settings_are_told_and_the_defaults_hold(tmp_path: Path, content: bytes):
    store = AdapterStore(tmp_path)
    store.configure(StoreSettings(keep_versions=1))
    (tmp_path / ".edgelora" / "settings.json").write_bytes(content)
    with pytest.warns(StoreWarning, match="settings"):
        assert store.settings == StoreSettings()
    with pytest.warns(StoreWarning):
        store.save("ann", adapter(1))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"keep_versions.*quota"):
        StoreSettings(keep_versions=0, quota=-1)


# --- digests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["adapter_config.json", "edgelora.json", TENSORS_FILE])
def test_a_flipped_bit_anywhere_in_a_version_is_seen(tmp_path: Path, file: str):
    store = AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    store.save("ann", adapter(2))
    path = tmp_path / "ann" / "versions" / "000002" / file
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 40)):
        damage(path, place)
        with pytest.raises(AdapterError, match=r"version 2, is damaged: roll back to another version \(1\)"):
            store.load("ann", 2)
        path.write_bytes(content)
    assert value_of(store.load("ann", 2)) == 2


def test_the_digests_are_those_of_sha256sum(tmp_path: Path):
    AdapterStore(tmp_path).save("ann", adapter(1))
    folder = tmp_path / "ann" / "versions" / "000001"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    (folder / "SHA256SUMS").unlink()
    assert value_of(AdapterStore(tmp_path).load("ann")) == 1, "a version that was saved without them is read"


# --- quota -----------------------------------------------------------------------------------------------------


def put_cache(store: AdapterStore, name: str, file: str, size: int, used: float) -> Path:
    folder = store.state_path(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(bytes(size))
    os.utime(folder / file, (used, used))
    return folder / file


def test_caches_are_deleted_for_the_quota_in_the_order_of_their_use_and_adapters_never(tmp_path: Path):
    store = AdapterStore(tmp_path)
    for name in ("ann", "bob", "eve"):
        store.save(name, adapter(1))
    old = put_cache(store, "ann", "prefix-1.cache", 100_000, 1000)
    new = put_cache(store, "bob", "prefix-2.cache", 100_000, 3000)
    middle = put_cache(store, "eve", "prefix-3.cache", 100_000, 2000)
    unfinished = put_cache(store, "eve", "state.safetensors", 100_000, 10)
    assert store.make_room() == [], "no quota"
    store.configure(StoreSettings(quota=330_000))
    store.save("ann", adapter(2))
    assert [p.exists() for p in (old, middle, new, unfinished)] == [False, True, True, True]
    store.configure(StoreSettings(quota=230_000))
    assert store.make_room() == [middle]
    with store.lock("bob"):
        assert AdapterStore(tmp_path).make_room(100_000) == [], "what another process uses stays"
    assert store.make_room(100_000) == [new]
    with pytest.raises(StoreError, match="quota of 230,000 bytes is too small"):
        store.make_room(200_000)
    before = everything(tmp_path)
    store.configure(StoreSettings(quota=1000))
    with pytest.raises(StoreError, match="only caches are deleted"):
        store.save("ann", adapter(3))
    settings = {".edgelora/settings.json": store.settings.to_bytes()}
    assert everything(tmp_path) | settings == before | settings
    assert {name: value_of(store.load(name)) for name in store.list()} == {"ann": 2, "bob": 1, "eve": 1}


# --- a person --------------------------------------------------------------------------------------------------


def home(tmp_path: Path, key: Key | None = None) -> AdapterStore:
    store = AdapterStore(tmp_path / "store", key)
    for value, name in enumerate(["ann", "ann+music", "anna", "ann.smith", "bob"], 1):
        store.save(name, adapter(value))
    store.save("ann", adapter(9))
    store.rollback("ann")
    put_cache(store, "ann", "prefix-1.cache", 10, 1000)
    with store.lock("ann+heating"):
        put_cache(store, "ann+heating", "prefix-2.cache", 10, 1000)
    return store


def test_what_belongs_to_a_person(tmp_path: Path):
    store = home(tmp_path)
    assert names_of(store, "ann") == ["ann", "ann+heating", "ann+music"]
    with pytest.raises(StoreError, match=r"nothing in .* belongs to 'zoe'"):
        names_of(store, "zoe")


@pytest.mark.parametrize("secret", [None, SECRET])
def test_an_export_is_a_store_and_holds_all_of_a_person(tmp_path: Path, secret: bytes | None):
    store = home(tmp_path, None if secret is None else Key(secret))
    before = everything(store.root)
    files = export_names(store, names_of(store, "ann"), tmp_path / "out")
    assert everything(store.root) == before
    assert tmp_path / "out" / "ann" / "training" / "prefix-1.cache" in files
    copy = AdapterStore(tmp_path / "out")
    assert copy.list() == ["ann", "ann+music"]
    assert copy.current_version("ann") == 1
    assert {n: value_of(copy.load("ann", n)) for n in (1, 2)} == {1: 1, 2: 9}
    assert to_files(copy.load("ann+music")) == to_files(store.load("ann+music"))
    with pytest.raises(StoreError, match="exists"):
        export_names(store, ["bob"], tmp_path / "out")
    with pytest.raises(StoreError, match=r"no adapter 'zoe'"):
        export_names(store, ["zoe"], tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "store"]


def test_removal_of_a_person_leaves_nothing_of_them_and_all_of_the_others(tmp_path: Path):
    store = home(tmp_path)
    others = {k: v for k, v in everything(store.root).items() if k.split("/")[0] in ("anna", "ann.smith", "bob")}
    remove_names(store, names_of(store, "ann"))
    assert {k: v for k, v in everything(store.root).items() if not k.startswith(".edgelora/locks/")} == others
    assert not [p for p in store.root.rglob("*") if p.name in ("ann", "ann+music", "ann+heating")]


# --- a key -----------------------------------------------------------------------------------------------------


def test_with_a_key_nothing_can_be_read_from_the_disk(tmp_path: Path):
    store = AdapterStore(tmp_path, Key(SECRET))
    assert [store.save("ann", adapter(v)) for v in (1, 1, 2)] == [1, 1, 2]
    assert value_of(AdapterStore(tmp_path, Key(SECRET)).load("ann")) == 2
    assert [v.summary() for v in store.show("ann").versions] == ["1 steps, accuracy 0.500", "2 steps, accuracy 0.500"]
    values = adapter(1).tensors.values()
    for path, content in everything(tmp_path).items():
        assert b"lora" not in content and b"steps" not in content, path
        assert not any(np.ascontiguousarray(t).tobytes() in content for t in values)


@pytest.mark.parametrize("key", [None, Key(bytes(32))])
def test_another_key_or_none_is_a_named_error(tmp_path: Path, key: Key | None):
    AdapterStore(tmp_path, Key(SECRET)).save("ann", adapter(1))
    other = AdapterStore(tmp_path, key)
    with pytest.raises(StoreError, match="another key" if key else r"encrypted; give the key \(--key-file\)"):
        other.load("ann")
    assert other.show("ann").versions[0].problem is not None
    assert value_of(AdapterStore(tmp_path, Key(SECRET)).load("ann")) == 1


def test_what_was_altered_swapped_or_not_signed_is_refused(tmp_path: Path):
    store = AdapterStore(tmp_path, Key(SECRET))
    store.save("ann", adapter(1))
    store.save("ann", adapter(2))
    store.save("bob", adapter(3))
    file = tmp_path / "ann" / "versions" / "000002" / "adapter.sealed"
    content = file.read_bytes()
    for place in (16, 20, 30, len(content) // 2, -1):
        damage(file, place)
        with pytest.raises(AdapterError, match="altered"):
            store.load("ann", 2)
        with pytest.warns(StoreWarning, match="version 1 is used"):
            assert value_of(store.load("ann")) == 1
        file.write_bytes(content)
    for cut in (0, 8, 12, 16, 28, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises((AdapterError, StoreError)):
            store.load("ann", 2)
    for source in ("ann/versions/000001", "bob/versions/000001"):
        file.write_bytes((tmp_path / source / "adapter.sealed").read_bytes())
        with pytest.raises(AdapterError, match="altered"):
            store.load("ann", 2)
    AdapterStore(tmp_path / "plain").save("bob", adapter(4))
    plain = tmp_path / "plain" / "bob" / "versions" / "000001"
    plain.rename(tmp_path / "bob" / "versions" / "000002")
    with pytest.raises(StoreError, match="not encrypted"):
        store.load("bob", 2)


def test_keys_come_from_files(tmp_path: Path):
    (tmp_path / "hex").write_text(SECRET.hex() + "\n")
    (tmp_path / "raw").write_bytes(SECRET)
    assert Key.read(tmp_path / "hex").id == Key.read(tmp_path / "raw").id == Key(SECRET).id
    made = subprocess.run(["openssl", "rand", "-hex", "32"], capture_output=True, check=True).stdout
    (tmp_path / "made").write_bytes(made)
    Key.read(tmp_path / "made")
    for content in (b"", b"short", SECRET.hex()[:-2].encode(), b"\xff" * 40, b"zz" * 32):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(StoreError, match="key"):
            Key.read(tmp_path / "bad")
    with pytest.raises(StoreError, match="cannot be read"):
        Key.read(tmp_path / "none")


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *arguments, **named):
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EdgeLoraError, match=r"edgelora\[encrypt\]"):
        Key(SECRET)
