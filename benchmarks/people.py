"""Many people on one device: opening and switching among 10,000 adapters, and 64 threads of 64 people at once.

all-MiniLM-L6, LoRA r8 on query and value. Each answer of the threads is compared with what the person gets alone, with
and without a training beside them, whose every run is saved. Most of the adapters on disk are links to one; those that
are opened for the clock have files of their own, which the system holds in memory ("warm") or was told to forget
("cold"). Bounded memory is that of the process after all were used once, and after all were used once more.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import inference
from benchmarks.measure import BenchmarkError

if TYPE_CHECKING:
    from edgelora import Model

OPENED = 200  # adapters with files of their own
OPEN_AIM, SWITCH_AIM = 5.0, 1.0  # milliseconds
_SAME = 1e-3  # of logits of size 1: products of other numbers of rows round differently
TEXTS = ("make it cosy", "turn the light down a little please", "stop", "wake me at seven and play something quiet")


@dataclass
class Served:
    """What came of many threads: answers, errors, answers that were not the person's own, seconds of each call."""

    answers: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def serve(model: Model, names: Sequence[str], texts: Sequence[str], calls: int) -> Served:
    """A thread for each name, `calls` answers each: every other one in a call with three other people's rows."""
    feeds = [model.encode([text]) for text in texts]
    alone = [model.outputs(one, name)["logits"][0] for one, name in zip(feeds, names, strict=True)]
    served, lock, begin = Served(), threading.Lock(), threading.Barrier(len(names))

    def person(mine: int) -> None:
        rng = np.random.default_rng(mine)
        begin.wait()
        for call in range(calls):
            who = [mine] if call % 2 else [mine, *rng.choice(len(names), 3, replace=False).tolist()]
            started = time.perf_counter()
            try:
                got = model.outputs([texts[i] for i in who], adapters=[names[i] for i in who])["logits"]
            except Exception as error:
                with lock:
                    served.errors.append(f"{names[mine]}: {type(error).__name__}: {error}")
                continue
            taken = time.perf_counter() - started
            bad = [names[i] for i, row in zip(who, got, strict=True) if not _same(row, alone[i])]
            with lock:
                served.answers += 1
                served.seconds.append(taken)
                served.wrong += bad

    threads = [threading.Thread(target=person, args=(i,)) for i in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return served


def _same(row: np.ndarray, alone: np.ndarray) -> bool:
    return bool(np.abs(row - alone).max() <= _SAME * max(1.0, float(np.abs(alone).max())))


def run(stored: int, people: int, calls: int, threads: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Convert, measure, and return the body of the report.

    Raises:
        BenchmarkError: the model is not there or cannot be converted.
    """
    from edgelora import LoraConfig, Model, SessionSettings
    from edgelora.adapter import new_adapter
    from edgelora.errors import EdgeLoraError
    from edgelora.memory import resident_memory
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.recipes import fetch, load_recipe
    from edgelora_tools.sources import open_source

    with tempfile.TemporaryDirectory(prefix="edgelora-people-") as name:
        folder = Path(name)
        try:
            progress("converting")
            source = open_source(str(fetch(load_recipe(inference.RECIPE))))
            options = ConvertOptions(task="sequence-classification", target_modules=inference.TARGETS)
            convert(source, folder / "l6.edgelora", options)
            model = Model.open(folder / "l6.edgelora", folder / "adapters", SessionSettings(threads=threads))
        except EdgeLoraError as error:
            raise BenchmarkError(str(error)) from error
        rng, config = np.random.default_rng(0), LoraConfig(r=inference.RANK, lora_alpha=inference.RANK)
        fresh = new_adapter(model.bundle.manifest, config, inference.LABELS)
        names, opened = ([f"{kind}-{i}" for i in range(n)] for kind, n in (("person", people), ("opened", OPENED)))
        for person in (*names, *opened):
            values = {n: (rng.standard_normal(t.shape) / 8).astype(np.float32) for n, t in fresh.tensors.items()}
            model.store.save(person, fresh.with_tensors(values))
        texts = [TEXTS[i % len(TEXTS)] for i in range(people)]
        body: dict[str, Any] = {"case": "people", "threads": threads, "stored": stored, "people": people}
        model.predict(texts[:2], adapters=names[:2])
        for case in ("alone", "training"):
            progress(f"{people} threads, {case}")
            body[case] = _served(model, names, texts, calls, training=case == "training")
        progress(f"{stored:,} adapters on disk")
        model.store.save("user-0", fresh)
        inference.link_copies(model.store.root, "user-0", stored)
        body["open"] = {kind: _opening(model, opened, cold=kind == "cold") for kind in ("warm", "cold")}
        before = resident_memory() or 0
        body["switch"] = inference.switching(model, stored)
        body["limit"] = model.cache.limit
        body["resident_growth"] = (resident_memory() or 0) - before
        progress("all of them once more")
        for i in range(stored):
            model.activate(f"user-{i}")
        body["resident_growth_again"] = (resident_memory() or 0) - before
    return body


def _opening(model: Model, names: Sequence[str], cold: bool) -> dict[str, float]:
    """Milliseconds to activate adapters that are not in memory, by the clock and of processor time."""
    from edgelora import Model

    fresh = Model(model.bundle, model.store)
    clock: list[float] = []
    processor: list[float] = []
    for name in names:
        for file in (model.store.root / name).rglob("*") if cold else ():
            _forget(file)
        began, began_cpu = time.perf_counter(), time.thread_time()
        fresh.activate(name)
        clock.append(1e3 * (time.perf_counter() - began))
        processor.append(1e3 * (time.thread_time() - began_cpu))
    return {
        "median": float(np.median(clock)),
        "p99": float(np.percentile(clock, 99)),
        "processor": float(np.median(processor)),
    }


def _forget(file: Path) -> None:
    """Tell the system to hold a file's content no longer in memory."""
    if file.is_file() and hasattr(os, "posix_fadvise"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _served(model: Model, names: Sequence[str], texts: Sequence[str], calls: int, training: bool) -> dict[str, Any]:
    """`serve`, alone or while another adapter is trained over and over, from its first step on."""
    from edgelora import TrainingConfig, train
    from edgelora.data import TextSample

    samples = [TextSample(f"{text} {i}", inference.LABELS[i % 2]) for i in range(16) for text in TEXTS]
    begun, done = threading.Event(), threading.Event()
    steps: list[float] = []
    runs: list[int] = []
    failed: list[str] = []

    def stepped(*_: object) -> None:
        steps.append(time.perf_counter())
        begun.set()

    def learn() -> None:
        try:
            while not done.is_set():
                config = TrainingConfig(max_steps=2, batch_size=16, seed=len(runs))
                runs.append(train(model, "learner", samples, config=config, callback=stepped).version)
        except Exception as error:
            failed.append(f"learner: {type(error).__name__}: {error}")
        finally:
            begun.set()

    learner = threading.Thread(target=learn)
    if training:
        learner.start()
        begun.wait()
    began = time.perf_counter()
    try:
        served = serve(model, names, texts, calls)
    finally:
        ended = time.perf_counter()
        done.set()
        if training:
            learner.join()
    served.errors += failed
    middle, late = np.percentile(served.seconds, (50, 99)) if served.seconds else (0.0, 0.0)
    counts = {"answers": served.answers, "errors": len(served.errors), "wrong": len(served.wrong)}
    return counts | {
        "median": float(middle),
        "p99": float(late),
        "trainings": len(runs),
        "steps_beside": sum(began <= step <= ended for step in steps),
        "first_errors": served.errors[:3],
    }


def markdown(body: Mapping[str, Any]) -> str:
    """The tables."""
    lines = [
        f"all-MiniLM-L6, LoRA r{inference.RANK} on query and value, {body['threads']} threads for an operator",
        "",
        f"| {body['people']} threads, {body['people']} people | answers | errors | another's | median, ms | 99 %, ms |",
        "|---|---|---|---|---|---|",
    ]
    for case, label in (("alone", "nothing beside"), ("training", "beside trainings")):
        one = body[case]
        label += f" ({one['trainings']}, {one['steps_beside']} steps meanwhile)" if one["trainings"] else ""
        lines.append(
            f"| {label} | {one['answers']} | {one['errors']} | {one['wrong']} | {one['median'] * 1e3:.0f} | "
            f"{one['p99'] * 1e3:.0f} |"
        )
    lines += ["", "| opening one of the others | ms, median | 99 % | processor, ms | aim |", "|---|---|---|---|---|"]
    for kind, label in (("warm", "files in the system's memory"), ("cold", "files on the disk alone")):
        one = body["open"][kind]
        lines.append(f"| {label} | {one['median']:.2f} | {one['p99']:.2f} | {one['processor']:.2f} | ≤ {OPEN_AIM:g} |")
    lines += ["", "| adapters in use | switch among those in memory, ms | aim |", "|---|---|---|"]
    for count, times in body["switch"]["by_count"].items():
        lines.append(f"| {int(count):,} | {times['switch'] * 1e3:.3f} | ≤ {SWITCH_AIM:g} |")
    switch = body["switch"]
    lines += [
        "",
        f"After all {body['stored']:,} were used once: {switch['cached']} in memory, "
        f"{switch['cached_bytes'] / 1e6:.0f} MB of at most {body['limit'] / 1e6:.0f}; the process grew by "
        f"{body['resident_growth'] / 1e6:.0f} MB, after all were used once more by "
        f"{body['resident_growth_again'] / 1e6:.0f} MB",
    ]
    return "\n".join(lines)
