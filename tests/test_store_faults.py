"""The store as a state machine whose process may die at any write: what `save` returned for is there, and whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgelora.errors import StoreError
from edgelora.sealing import Key
from edgelora.store import AdapterStore
from edgelora.store_settings import StoreSettings
from tests.faults import Died, Disk, watched
from tests.test_store import adapter, value_of

NAMES = st.sampled_from(["ann", "ann+music", "bob"])
KEPT = 3

Versions = dict[int, int]  # the value of each version
State = tuple[Versions, int]  # and which is current


class FaultyStore(RuleBasedStateMachine):
    """The store against all states that it may be in: one, and after a death also those that the action leads to."""

    @initialize(secret=st.booleans())
    def start(self, secret: bool) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="edgelora-faults-"))
        self.key = Key(bytes(32)) if secret else None
        self.known: dict[str, State] = {}
        AdapterStore(self.root, self.key).configure(StoreSettings(keep_versions=KEPT))
        self.reopen()

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    @rule()
    def reopen(self) -> None:
        self.store = AdapterStore(self.root, self.key)

    @rule(name=NAMES, value=st.integers(0, 4), activate=st.booleans(), dies=st.none() | st.integers(0, 25))
    def save(self, name: str, value: int, activate: bool, dies: int | None) -> None:
        versions, current = self.known.get(name, ({}, 0))
        newest = max(versions, default=0)
        held = next((n for n in (current, newest) if n and versions[n] == value), 0)
        number = held or newest + 1
        published = {**versions, number: value}
        after = number if activate else current
        pruned = {n: v for n, v in published.items() if n in sorted(published)[-KEPT:] or n == after}
        between = [(published, current), (published, after)]
        for n in sorted(published):  # the oldest go one by one
            if n not in pruned:
                published = {m: v for m, v in published.items() if m != n}
                between.append((published, after))
        if not current and not versions and activate:  # without a pointer the one version counts as current
            between.append(({number: value}, number))
        self.attempt(name, lambda: self.store.save(name, adapter(value), activate), (pruned, after), between, dies)

    @rule(name=NAMES, version=st.none() | st.integers(1, 6), dies=st.none() | st.integers(0, 8))
    def rollback(self, name: str, version: int | None, dies: int | None) -> None:
        versions, current = self.known.get(name, ({}, 0))
        older = [n for n in versions if n < current]
        target = version if version is not None else max(older, default=0)
        if target in versions:
            self.attempt(name, lambda: self.store.rollback(name, version), (versions, target), [], dies)
        else:
            with pytest.raises(StoreError):
                self.store.rollback(name, version)

    @rule(name=NAMES, dies=st.none() | st.integers(0, 12))
    def remove(self, name: str, dies: int | None) -> None:
        if name in self.known:
            self.attempt(name, lambda: self.store.remove(name), ({}, 0), [], dies)

    @precondition(lambda self: any(current for _, current in self.known.values()))
    @rule(choice=st.randoms(use_true_random=False))
    def lose_the_pointer(self, choice) -> None:
        name = choice.choice(sorted(n for n, (_, current) in self.known.items() if current))
        (self.root / name / "current").unlink(missing_ok=True)
        versions = self.known[name][0]
        self.known[name] = (versions, max(versions))

    def attempt(
        self, name: str, act: Callable[[], object], after: State, between: list[State], dies: int | None
    ) -> None:
        """Act, perhaps dying; then find the store in one of the states that this may lead to."""
        before = self.known.get(name, ({}, 0))
        with watched() as disk:
            disk.dies_at = dies
            try:
                act()
                possible = [after]
            except Died:
                possible = [before, *between, after]
        if len(possible) > 1:
            self.reopen()
        found = self.found(name)
        assert found in possible, (found, possible)
        if found[0]:
            self.known[name] = found
        else:
            self.known.pop(name, None)

    def found(self, name: str) -> State:
        """What is on the disk; every version opens."""
        if name not in self.store.list():
            return {}, 0
        info = self.store.show(name)
        assert [v.problem for v in info.versions] == [None] * len(info.versions)
        return {v.number: value_of(self.store.load(name, v.number)) for v in info.versions}, info.current

    @invariant()
    def all_is_there(self) -> None:
        if hasattr(self, "root"):
            assert self.store.list() == sorted(self.known)
            for name, state in self.known.items():
                assert self.found(name) == state

    @invariant()
    def nothing_is_left_over_once_it_is_opened(self) -> None:
        if hasattr(self, "root"):
            AdapterStore(self.root, self.key)
            assert not list((self.root / ".edgelora" / "staging").iterdir())


TestFaultyStore = FaultyStore.TestCase
TestFaultyStore.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_the_faults_cover_every_change_of_a_save(tmp_path: Path):
    """A death at each of the changes that a save makes, one after the other."""
    store = AdapterStore(tmp_path)
    store.save("ann", adapter(1))
    with watched() as disk:
        store.save("ann", adapter(2))
    changes = disk.changes
    assert changes > 10, "writes, flushes and renames are watched"
    for place in range(changes):
        store = AdapterStore(tmp_path)
        with watched() as disk:
            disk.dies_at = place
            with pytest.raises(Died):
                store.save("ann", adapter(100 + place))
        found = value_of(AdapterStore(tmp_path).load("ann"))
        assert found in (2, 100 + place)
        store = AdapterStore(tmp_path)
        store.save("ann", adapter(2))
    assert isinstance(disk, Disk)
