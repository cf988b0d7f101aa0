"""What is fuzzed: each makes a hostile case from real files, and uses it as a person would."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgelora import (
    AdapterStore,
    BeftConfig,
    BottleneckConfig,
    FullConfig,
    Gate,
    IA3Config,
    Key,
    LNTuningConfig,
    LoraConfig,
    Model,
    PrefixTuningConfig,
    PromptTuningConfig,
    SessionSettings,
    TrainingConfig,
    VeraConfig,
    read_samples,
    train,
)
from edgelora.adapter import (
    CONFIG_FILE,
    RECORD_FILE,
    TENSORS_FILE,
    Adapter,
    new_adapter,
    read_adapter,
    to_files,
    write_adapter,
)
from edgelora.bundle import MANIFEST_FILE, Bundle
from edgelora.config import AdapterConfig
from edgelora.data import TextSample, read_texts
from edgelora.errors import EdgeLoraError
from edgelora.manifest import LORA_GRAPHS
from edgelora.methods import method_of
from edgelora.person import export_names, names_of, remove_names
from edgelora.store_settings import StoreSettings
from edgelora.targets import select_points
from tests.fuzz.mutations import PIECES, nudge_json, spoil

TEXTS = ["make the room warm", "turn the light up"]
SAMPLES = [TextSample(f"make the room {word}", word) for word in ("warm", "dark", "loud")] * 2
ONE_CORE = SessionSettings(threads=1)
SHORT = TrainingConfig(num_train_epochs=1, batch_size=3)

Case = Callable[[random.Random, Path], Callable[[], object]]

CONFIGS: tuple[AdapterConfig, ...] = (
    LoraConfig(r=1),
    LoraConfig(r=2, rank_pattern={"query": 1}, alpha_pattern={r".*\.value": 3.0}, target_modules="all-linear"),
    LoraConfig(r=1, use_dora=True),
    LoraConfig(r=1, bias="all"),
    VeraConfig(r=2),
    IA3Config(feedforward_modules=("output.dense",)),
    BottleneckConfig(r=2),
    BeftConfig(),
    LNTuningConfig(),
    FullConfig(target_modules=("query",)),
    PromptTuningConfig(num_virtual_tokens=2),
    PrefixTuningConfig(num_virtual_tokens=2),
)
"""One of each method; the bundle has graphs for some of them, or all."""


def _made(bundle: Bundle) -> list[Adapter]:
    """An adapter of each method that the bundle has graphs for."""
    manifest, learned = bundle.manifest, {"steps": 3, "history": [{"epoch": 1}]}
    graphs = {LORA_GRAPHS, *manifest.methods}
    return [
        replace(new_adapter(manifest, config, ("cold", "warm"), base=bundle), training=learned)
        for config in CONFIGS
        if method_of(config).graphs in graphs
    ]


def adapters(bundle: Path) -> Case:
    """Adapter folders, ours and PEFT's: read, checked, saved, used and trained further."""
    model = Model.open(bundle, bundle.with_name("fuzz.adapters"), ONE_CORE)
    manifest = model.bundle.manifest
    sources = [to_files(adapter) for adapter in _made(model.bundle)]

    def case(rng: random.Random, folder: Path) -> Callable[[], object]:
        files = dict(rng.choice(sources))
        if rng.random() < 0.3:
            del files[RECORD_FILE]
        for name in rng.sample(sorted(files), rng.choice([1, 1, 1, min(2, len(files))])):
            files[name] = spoil(name, files[name], rng)
        if RECORD_FILE in files and rng.random() < 0.8:
            files[RECORD_FILE] = _agreeing(files)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        _swap_one(folder / rng.choice(sorted(files)), rng)

        def use() -> None:
            adapter = read_adapter(folder, manifest, accept_base=True)
            adapter.validate(manifest)
            store = AdapterStore(folder / "store")
            store.save("ann", adapter)
            person = Model(model.bundle, store)
            write_adapter(store.load("ann"), folder / "written")
            person.predict(TEXTS, adapters=["ann", "ann"])
            select_points(manifest.points, adapter.config)
            train(person, "ann", SAMPLES, config=SHORT)

        return use

    return case


def bundles(bundle: Path) -> Case:
    """Bundles whose files were altered, with digests that fit: opened, used, trained and checked."""
    made = _made(Model.open(bundle, settings=ONE_CORE).bundle)

    def case(rng: random.Random, folder: Path) -> Callable[[], object]:
        copy = folder / "copy.edgelora"
        shutil.copytree(bundle, copy)
        names = sorted(p.name for p in copy.iterdir())
        manifest = copy / MANIFEST_FILE
        if rng.random() < 0.5:
            manifest.write_bytes(nudge_json(manifest.read_bytes(), rng))
        else:
            for name in rng.sample(names, rng.choice([1, 1, 2])):
                (copy / name).write_bytes(spoil(name, (copy / name).read_bytes(), rng))
        if rng.random() < 0.8:
            _with_digests(copy)
        _swap_one(copy / rng.choice(names), rng)
        adapter = rng.choice(made)

        def use() -> None:
            model = Model.open(copy, folder / "store", ONE_CORE)
            model.outputs(TEXTS, adapter)
            model.predict(TEXTS, adapters=[adapter, replace(adapter)])
            train(model, "ann", SAMPLES, lora=adapter.config, config=SHORT)

        return use

    return case


def data(_bundle: Path) -> Case:
    """Data files of every task, JSONL and CSV."""
    sources = {
        "sequence-classification": [{"text": "warm now", "label": "a"}, {"text": "cold, later", "label": "b"}],
        "regression": [{"text": "warm", "label": 1.5}, {"text": "cold", "label": [2, 3]}],
        "token-classification": [{"tokens": ["a", "b"], "labels": ["O", "B"]}] * 2,
        "text-generation": [
            {"prompt": "2 + 2 =", "completion": " 4"},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"text": "a text"},
        ],
        "sentence-embedding": [{"anchor": "a", "positive": "b", "negative": "c"}] * 3,
    }

    def case(rng: random.Random, folder: Path) -> Callable[[], object]:
        task = rng.choice(sorted(sources))
        rows = sources[task]
        csv = rng.random() < 0.4
        if csv:
            lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
            content = spoil("data.csv", ("\r\n".join(lines) * rng.choice([1, 1, 50])).encode(), rng)
        else:
            body = [json.dumps(row).encode() for row in rows] * rng.choice([1, 1, 50])
            for place in rng.sample(range(len(body)), rng.choice([1, 1, 2])):
                body[place] = spoil("line.json", body[place], rng).replace(b"\n", b" ")
            content = b"\n".join(body)
        if rng.random() < 0.3:
            content = spoil("data.csv", content, rng)
        path = folder / ("data.csv" if csv else "data.jsonl")
        path.write_bytes(content)

        def use() -> None:
            with contextlib.suppress(EdgeLoraError):
                read_texts(path)
            read_samples(path, task)

        return use

    return case


def store(bundle: Path) -> Case:
    """Stores whose files were altered: opened, read, written, trained in, exported and emptied."""
    sources = {}
    for name, key in (("plain", None), ("sealed", Key(bytes(32)))):
        root = bundle.with_name(f"{name}.store")
        model = Model.open(bundle, root, ONE_CORE, key=key)
        model.store.configure(StoreSettings(keep_versions=4, quota=50_000_000))
        for seed in (1, 2):
            train(model, "ann", SAMPLES, lora=None if seed > 1 else LoraConfig(r=1), config=replace(SHORT, seed=seed))
        model.store.save("ann+music", model.store.load("ann"))
        _interrupt(model)
        sources[name] = (root, key)

    def case(rng: random.Random, folder: Path) -> Callable[[], object]:
        source, key = sources[rng.choice(sorted(sources))]
        root = folder / "store"
        shutil.copytree(source, root)
        files = sorted(p for p in root.rglob("*") if p.is_file())
        for path in rng.sample(files, rng.choice([1, 1, 2, 3])):
            path.write_bytes(spoil(path.name, path.read_bytes(), rng))
        if rng.random() < 0.4:
            _swap_one(rng.choice(sorted(root.rglob("*"))), rng, always=True)

        def use() -> None:
            model = Model.open(bundle, root, ONE_CORE, key=key)
            own, problems = model.store, []
            for act in (
                lambda: [own.show(name) for name in own.list()],
                lambda: model.predict(TEXTS, adapters=["ann", "ann+music"]),
                lambda: own.rollback("ann"),
                lambda: own.save("ann", own.load("ann+music")),
                lambda: export_names(own, names_of(own, "ann"), folder / "export"),
                lambda: train(model, "ann", SAMPLES, config=replace(SHORT, seed=3), gate=Gate(SAMPLES)),
                lambda: train(model, "ann", SAMPLES, lora=LoraConfig(r=1), config=SHORT, restart=True, again=True),
                lambda: own.make_room(),
                lambda: remove_names(own, names_of(own, "ann")),
            ):
                try:
                    act()
                except EdgeLoraError as error:
                    problems.append(error)
            if problems:
                raise problems[0]

        return use

    return case


TARGETS: dict[str, Callable[[Path], Case]] = {"adapters": adapters, "bundles": bundles, "data": data, "store": store}


def _interrupt(model: Model) -> None:
    """Leave an unfinished run behind."""

    def stop(step, _progress) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    try:
        train(model, "ann", SAMPLES, config=replace(SHORT, num_train_epochs=4, save_steps=1), callback=stop)
    except KeyboardInterrupt:
        return
    raise AssertionError("the run was not interrupted")


def _agreeing(files: dict[str, bytes]) -> bytes:
    """The record with the digest of the tensors and the settings of the configuration, as they are now."""
    try:
        body, config = json.loads(files[RECORD_FILE]), json.loads(files[CONFIG_FILE])
        body["sha256"] = hashlib.sha256(files[TENSORS_FILE]).hexdigest()
        body["lora"] = {name: config.get(name) for name in body["lora"]}
        return json.dumps(body).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return files[RECORD_FILE]


def _with_digests(bundle: Path) -> None:
    """Give the manifest the sizes and digests that the files have now."""
    try:
        body = json.loads((bundle / MANIFEST_FILE).read_bytes())
        for name, entry in body["files"].items():
            content = (bundle / name).read_bytes() if "/" not in name and "\0" not in name else b""
            entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        (bundle / MANIFEST_FILE).write_bytes(json.dumps(body).encode("utf-8", "surrogatepass"))
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
        return


def _swap_one(path: Path, rng: random.Random, always: bool = False) -> None:
    """Now and then, put something else where a file or folder is: nothing, a folder, a link to the outside, junk."""
    if not always and rng.random() > 0.1:
        return
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    kind = rng.randrange(5)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(os.environ["FUZZ_OUTSIDE"])
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.write_bytes(rng.choice(PIECES))
