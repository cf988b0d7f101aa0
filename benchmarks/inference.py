"""What adapters cost at inference: off against a graph without points, on against off, mixed batches, switching.

all-MiniLM-L6, LoRA r8 on query and value. Sides take turns in one process, and times are medians by the clock and of
the processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import BenchmarkError

RECIPE, TARGETS, RANK = "minilm-l6", ("query", "value"), 8
ROWS, LABELS = 64, tuple(f"class {i}" for i in range(10))
_WARM = 3

Times = dict[str, tuple[float, float]]


def run(
    lengths: Sequence[int], stored: int, threads: int, runs: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Convert, measure, and return the body of the report.

    Raises:
        BenchmarkError: the model is not there or cannot be converted.
    """
    from edgelora import LoraConfig, Model, SessionSettings
    from edgelora.adapter import new_adapter
    from edgelora.errors import EdgeLoraError
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.recipes import fetch, load_recipe
    from edgelora_tools.sources import open_source

    settings = SessionSettings(threads=threads)
    with tempfile.TemporaryDirectory(prefix="edgelora-inference-") as name:
        folder = Path(name)
        try:
            progress("converting")
            source = open_source(str(fetch(load_recipe(RECIPE))))
            options = ConvertOptions(task="sequence-classification", target_modules=TARGETS)
            convert(source, folder / "l6.edgelora", options)
            plain = _plain_graph(source, options, folder / "plain.onnx", settings)
            model = Model.open(folder / "l6.edgelora", folder / "adapters", settings)
        except EdgeLoraError as error:
            raise BenchmarkError(str(error)) from error
        fresh = new_adapter(model.bundle.manifest, LoraConfig(r=RANK, lora_alpha=RANK), LABELS)
        rng = np.random.default_rng(0)
        body: dict[str, Any] = {"case": "inference", "threads": threads, "stored": stored, "runs": runs}
        progress("off and on")
        body["forward"] = {n: _off_and_on(model, plain, fresh, n, runs, rng) for n in lengths}
        progress(f"{stored:,} adapters on disk")
        model.store.save("user-0", fresh)
        link_copies(model.store.root, "user-0", stored)
        body["switch"] = switching(model, stored)
        progress("mixed batches")
        body["mixed"] = {n: _mixed(model, n, max(3, runs // 10), rng) for n in lengths}
    return body


def markdown(body: Mapping[str, Any]) -> str:
    """The tables."""
    lines = [
        f"all-MiniLM-L6, LoRA r{RANK} on query and value, {body['threads']} threads; clock (processor time)",
        "",
        "| 1 × tokens | no points, ms | off | on |",
        "|---|---|---|---|",
    ]
    for length, times in body["forward"].items():
        off, on = (_ratio(times[side], times["plain"]) for side in ("off", "on"))
        lines.append(f"| {length} | {times['plain'][0] * 1e3:.2f} | {off} | {on} |")
    lines += [
        "",
        f"| {ROWS} rows × tokens | one adapter, ms | {ROWS} adapters, throughput | grouped |",
        "|---|---|---|---|",
    ]
    for length, times in body["mixed"].items():
        mixed, grouped = (_ratio(times["one"], times[side]) for side in ("mixed", "grouped"))
        lines.append(f"| {length} | {times['one'][0] * 1e3:.1f} | {mixed} | {grouped} |")
    switch = body["switch"]
    lines += ["", "| adapters on disk | switch, ms | open one, ms |", "|---|---|---|"]
    lines += [f"| {n:,} | {t['switch'] * 1e3:.3f} | {t['open'] * 1e3:.2f} |" for n, t in switch["by_count"].items()]
    lines += [
        "",
        f"Used one after the other: {switch['cached']:,} stay in memory, {switch['cached_bytes'] / 1e6:.1f} MB.",
    ]
    return "\n".join(lines)


def _ratio(time: Sequence[float], to: Sequence[float]) -> str:
    return f"{time[0] / to[0]:.3f} ({time[1] / to[1]:.3f})"


def _plain_graph(source: Any, options: Any, path: Path, settings: Any) -> Any:
    """The same source and task without insertion points."""
    import onnx_ir as ir

    from edgelora.session import Graph
    from edgelora_tools import compile as pipeline

    model = pipeline.normalize(source.model.clone())
    pipeline.measure_shapes(model)
    pipeline.recognise_composites(model)
    ir.save(pipeline.forward_graph(pipeline.prune(model, options), (), options).model, path)
    return Graph(path, settings)


def _off_and_on(model: Any, plain: Any, adapter: Any, length: int, runs: int, rng: np.random.Generator) -> Times:
    manifest = model.bundle.manifest
    inputs = {**_texts(1, length, rng)}
    values = adapter.with_tensors(
        {n: rng.standard_normal(t.shape).astype(np.float32) for n, t in adapter.tensors.items()}
    )
    head = {n: t for n, t in values.tensors.items() if n.startswith("classifier.")}
    on = {**inputs, **values.feeds(manifest)}
    off = {**inputs, **values.with_tensors(head).feeds(manifest)}
    forward = model.bundle.forward
    return in_turn(
        {"plain": lambda: plain.run(off), "off": lambda: forward.run(off), "on": lambda: forward.run(on)}, runs
    )


def _mixed(model: Any, length: int, runs: int, rng: np.random.Generator) -> Times:
    from edgelora import Bundle, Model

    inputs = _texts(ROWS, length, rng)
    names = [f"user-{i}" for i in range(ROWS)]
    apart = Model(
        Bundle(model.bundle.path, replace(model.bundle.manifest, mixed=None), model.bundle.settings), model.store
    )
    return in_turn(
        {
            "one": lambda: model.outputs(inputs, "user-0"),
            "mixed": lambda: model.outputs(inputs, adapters=names),
            "grouped": lambda: apart.outputs(inputs, adapters=names),
        },
        runs,
    )


def switching(model: Any, stored: int) -> dict[str, Any]:
    """Times of activating by name, with more and more adapters in use; then all of them once."""
    from edgelora import Model

    counts = [n for n in (1, 10, 100, 1000, 10_000, 100_000) if n < stored] + [stored]
    by_count: dict[int, dict[str, float]] = {}
    for count in counts:
        fresh = Model(model.bundle, model.store)
        names = [f"user-{i}" for i in np.linspace(0, count - 1, min(count, 100)).astype(int)]
        first = [_seconds(partial(fresh.activate, n)) for n in names]
        again = [_seconds(partial(fresh.activate, n)) for _ in range(300 // len(names) + 1) for n in names]
        by_count[count] = {"open": float(np.median(first)), "switch": float(np.median(again))}
    for i in range(stored):
        model.activate(f"user-{i}")
    return {"by_count": by_count, "cached": len(model.cache), "cached_bytes": model.cache.size}


def link_copies(root: Path, name: str, count: int) -> None:
    """Links to one adapter's files under `count` names."""
    files = sorted((root / name / "versions" / "000001").iterdir())
    for number in range(1, count):
        folder = root / f"user-{number}"
        version = folder / "versions" / "000001"
        version.mkdir(parents=True)
        (folder / "name").write_text(folder.name, encoding="utf-8")
        (folder / "current").write_text("1", encoding="utf-8")
        for file in files:
            os.link(file, version / file.name)


def _texts(rows: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    ids = rng.integers(1000, 20_000, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def in_turn(sides: Mapping[str, Callable[[], Any]], runs: int) -> Times:
    """Median seconds of each side, by the clock and of processor time."""
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(_WARM + runs):
        for side, act in sides.items():
            clock, cpu = time.perf_counter(), time.process_time()
            act()
            if number >= _WARM:
                taken[side].append((time.perf_counter() - clock, time.process_time() - cpu))
    return {
        side: (float(np.median([t for t, _ in s])), float(np.median([t for _, t in s]))) for side, s in taken.items()
    }


def _seconds(act: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun
