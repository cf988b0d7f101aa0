"""Kill real processes at random instants while they save, roll back, remove and train, and look what is left.

`python -m tests.kills --kills 1000` makes a tiny bundle, a store, and as many kills; it ends with an error at the first
thing that is missing, half there, or other than what a process that nobody killed makes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgelora import LoraConfig, Model, SessionSettings, TrainingConfig, train
from edgelora.adapter import to_files
from edgelora.data import TextSample
from edgelora.store import AdapterStore
from edgelora.store_settings import StoreSettings
from edgelora.training_state import STATE_FILE, unfinished
from tests.test_store import adapter, value_of

SAMPLES = [TextSample(f"make the room {word}", word) for word in ("warm", "dark", "loud", "bright")] * 3
CONFIG = TrainingConfig(num_train_epochs=3, batch_size=4, save_steps=1, learning_rate=1e-2)
RECENT = 20

DOING = {"saved": "between", "rolled": "between", "removed": "between", "trained": "train"}

Note = tuple[str, ...]


def keep(root: Path, _bundle: Path, note: Callable[..., None], kill: int) -> None:
    """Save, roll back and remove without end."""
    store, rng = AdapterStore(root), random.Random(kill)
    for value in itertools.count(1000 * (kill + 1)):
        active = rng.random() < 0.7 or not store.exists("ann")
        note("save", "ann", value, int(active))
        note("saved", "ann", store.save("ann", adapter(value), active), value, int(active))
        numbers = [v.number for v in store.show("ann").versions[-5:]] if rng.random() < 0.3 else []
        if numbers:
            target = rng.choice(numbers)
            note("roll", "ann", target)
            note("rolled", "ann", store.rollback("ann", target))
        note("save", "bob", value, 1)
        note("saved", "bob", store.save("bob", adapter(value)), value, 1)
        note("remove", "bob")
        store.remove("bob")
        note("removed", "bob")


def turn(root: Path, bundle: Path, note: Callable[..., None], kill: int) -> None:
    """Roll back and forth without end."""
    store, rng = AdapterStore(root), random.Random(kill)
    if not store.exists("ann"):
        keep(root, bundle, note, kill)
    while True:
        target = rng.choice([v.number for v in store.show("ann").versions[-5:]])
        note("roll", "ann", target)
        note("rolled", "ann", store.rollback("ann", target))


def learn(root: Path, bundle: Path, note: Callable[..., None], _kill: int) -> None:
    """Train one run after the other without end, each from what the last one left."""
    model = Model.open(bundle, root, SessionSettings(threads=1))
    while True:
        trained(model)
        note("trained", "home", model.store.current_version("home"))


def trained(model: Model) -> None:
    """The next run of the chain: its seed follows from the version that it starts from."""
    seed = model.store.current_version("home") if model.store.exists("home") else 0
    lora = None if seed else LoraConfig(r=2, lora_dropout=0.1)
    train(model, "home", SAMPLES, lora=lora, config=TrainingConfig(**{**CONFIG.to_dict(), "seed": seed}))


WORK = ((keep, 0.3), (learn, 1.0), (turn, 0.2))  # and after how many seconds at most it is killed


class Watch:
    """What the processes noted before they died, and what must therefore be in the store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.saved: dict[int, int] = {}
        self.current: set[int] = set()
        self.bob: set[str] = {""}
        self.home = 0
        self.interrupted: dict[str, int] = {}

    def read(self, notes: list[Note]) -> None:
        """Take in the complete lines of one process's log."""
        newest = max(self.saved, default=0)
        for word, name, *rest in notes:
            if name == "ann":
                if word == "saved":
                    number, value, active = map(int, rest)
                    self.saved[number], newest = value, number
                    self.current = {number} if active else self.current
                elif word == "rolled":
                    self.current = {int(rest[0])}
            elif name == "bob":
                self.bob = {rest[1]} if word == "saved" else {""} if word == "removed" else self.bob
            elif name == "home":
                self.home = int(rest[0])
        word, name, *rest = notes[-1] if notes else ("train", "home")
        what = DOING.get(word, word)
        self.interrupted[what] = self.interrupted.get(what, 0) + 1
        if word == "save" and name == "ann" and int(rest[1]):
            self.current = {*self.current, newest + 1}
        elif word == "roll":
            self.current = {*self.current, int(rest[0])}
        elif word == "save" and name == "bob":
            self.bob = {*self.bob, rest[0]}
        elif word == "remove":
            self.bob = {"", *self.bob}

    def check(self, whole: bool = False) -> None:
        """Raises AssertionError if anything that must be there is not, or is half there."""
        store = AdapterStore(self.root)
        assert not list((self.root / ".edgelora" / "staging").glob("*")), "leftovers after opening"
        for number in sorted(self.saved)[0 if whole else -RECENT :]:
            assert value_of(store.load("ann", number)) == self.saved[number], f"ann's version {number}"
        if self.saved:
            current, newest = store.current_version("ann"), store.newest("ann")
            assert current in self.current, f"ann's current version is {current}, not one of {self.current}"
            assert newest <= max(self.saved) + 1
            found = value_of(store.load("ann", newest))
            self.saved[newest], self.current = found, {current}
        bob = str(value_of(store.load("bob"))) if store.exists("bob") else ""
        assert bob in self.bob, f"bob holds {bob!r}, not one of {self.bob}"
        self.bob = {bob}
        if self.home or store.exists("home"):
            found = store.current_version("home")
            assert found in (self.home, self.home + 1), f"home's current version is {found}, after {self.home}"
            self.home = found
            for version in store.show("home").versions[0 if whole else -RECENT :]:
                assert version.problem is None, version.problem
        if (store.state_path("home") / STATE_FILE).exists():
            assert unfinished(store.state_path("home")) is not None, "the state of the training is damaged"


def notes_of(path: Path) -> list[Note]:
    text = path.read_text() if path.exists() else ""
    return [tuple(line.split()) for line in text[: text.rfind("\n") + 1].splitlines() if line != "started"]


def killed(folder: Path, bundle: Path, kills: int, seed: int, say: Callable[[str], None]) -> Watch:
    """Kill so many processes; returns what was watched. Raises AssertionError at the first loss."""
    root, log_path, rng = folder / "store", folder / "log", random.Random(seed)
    AdapterStore(root).configure(StoreSettings(keep_versions=None))
    watch = Watch(root)
    for kill in range(kills):
        work, longest = WORK[kill % len(WORK)]
        log_path.unlink(missing_ok=True)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def note(*words: object, log: int = log) -> None:
            os.write(log, (" ".join(map(str, words)) + "\n").encode())

        child = os.fork()
        if not child:
            try:
                note("started")
                work(root, bundle, note, kill)
            finally:
                os._exit(1)
        while not os.fstat(log).st_size:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the process ended by itself"
        os.close(log)
        watch.read(notes_of(log_path))
        watch.check()
        if (kill + 1) % 50 == 0:
            say(f"{kill + 1} kills, {len(watch.saved)} versions saved, {watch.home} trained")
    watch.check(whole=True)
    return watch


def same_as_undisturbed(folder: Path, bundle: Path, runs: int) -> None:
    """Check that the trained versions have the bytes of a chain of runs that nobody killed, in a process of its own."""
    child = os.fork()
    if not child:
        status = 1
        try:
            model = Model.open(bundle, folder / "undisturbed", SessionSettings(threads=1))
            model.store.configure(StoreSettings(keep_versions=None))
            for _ in range(runs):
                trained(model)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, "the undisturbed chain failed"
    ours, theirs = AdapterStore(folder / "store"), AdapterStore(folder / "undisturbed")
    for version in range(1, runs + 1):
        assert to_files(ours.load("home", version)) == to_files(theirs.load("home", version)), (
            f"version {version} differs"
        )


def make_bundle(path: Path, **options: Any) -> None:
    """The tiny bundle, converted with these options in another process: this one must be free of threads to fork."""
    child = os.fork()
    if not child:
        status = 1
        try:
            from tests.device import tiny

            tiny.write_bundle(tiny.module(), "sequence-classification", path, **options)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, "the bundle cannot be made"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, help="a bundle of tests/device/tiny.py (it is made otherwise)")
    options = parser.parse_args()
    folder, started = Path(tempfile.mkdtemp(prefix="edgelora-kills-")), time.monotonic()
    try:
        bundle = options.bundle or folder / "tiny.edgelora"
        if options.bundle is None:
            make_bundle(bundle)
        watch = killed(folder, bundle, options.kills, options.seed, lambda line: print(line, flush=True))
        same_as_undisturbed(folder, bundle, watch.home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{options.kills} kills in {time.monotonic() - started:.0f} s: {len(watch.saved)} versions saved and "
        f"{watch.home} trained, none missing, none half there; the trained ones have the bytes of an undisturbed chain"
    )
    print("what was interrupted: " + ", ".join(f"{word} {n}" for word, n in sorted(watch.interrupted.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
