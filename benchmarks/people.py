"""Many people on one device: opening and switching among 10,000 adapters, and 64 threads of 64 people at once.

all-MiniLM-L6, LoRA r8 on query and value. Each answer of the threads is compared with what the person gets alone, with
and without a training beside them.
"""

from __future__ import annotations

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
        names = [f"person-{i}" for i in range(people)]
        for person in names:
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
        before = resident_memory() or 0
        body["switch"] = inference.switching(model, stored)
        body["resident_growth"] = (resident_memory() or 0) - before
    return body


def _served(model: Model, names: Sequence[str], texts: Sequence[str], calls: int, training: bool) -> dict[str, Any]:
    """`serve`, alone or while another adapter is trained over and over."""
    from edgelora import TrainingConfig, train
    from edgelora.data import TextSample

    samples = [TextSample(f"{text} {i}", inference.LABELS[i % 2]) for i in range(16) for text in TEXTS]
    done, runs = threading.Event(), [0]

    def learn() -> None:
        while not done.is_set():
            train(model, "learner", samples, config=TrainingConfig(max_steps=2, batch_size=16, seed=runs[0]))
            runs[0] += 1

    learner = threading.Thread(target=learn)
    if training:
        learner.start()
    try:
        served = serve(model, names, texts, calls)
    finally:
        done.set()
        if training:
            learner.join()
    middle, late = np.percentile(served.seconds, (50, 99)) if served.seconds else (0.0, 0.0)
    counts = {"answers": served.answers, "errors": len(served.errors), "wrong": len(served.wrong)}
    return counts | {
        "median": float(middle),
        "p99": float(late),
        "trainings": runs[0],
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
        label += f" ({one['trainings']})" if one["trainings"] else ""
        lines.append(
            f"| {label} | {one['answers']} | {one['errors']} | {one['wrong']} | {one['median'] * 1e3:.0f} | "
            f"{one['p99'] * 1e3:.0f} |"
        )
    lines += ["", "| adapters in use | open, ms | switch, ms |", "|---|---|---|"]
    for count, times in body["switch"]["by_count"].items():
        lines.append(f"| {int(count):,} | {times['open'] * 1e3:.2f} | {times['switch'] * 1e3:.3f} |")
    switch = body["switch"]
    lines += [
        "",
        f"After all {body['stored']:,} were used once: {switch['cached']} in memory, "
        f"{switch['cached_bytes'] / 1e6:.0f} MB; the process grew by {body['resident_growth'] / 1e6:.0f} MB",
    ]
    return "\n".join(lines)
