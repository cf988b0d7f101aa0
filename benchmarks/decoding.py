"""What adapters cost a language model that writes: off against a graph without points, and on against off.

LoRA r8 on queries and values, one row. Sides take turns, a token each, with as much read before; times are medians by
the clock and of the processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference import in_turn
from benchmarks.measure import BenchmarkError

RANK = 8
TASK = "text-generation"


def run(
    spec: str, lengths: Sequence[int], threads: int, tokens: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Convert, measure, and return the body of the report.

    Raises:
        BenchmarkError: the model is not there or cannot be converted.
    """
    from edgelora import Bundle, SessionSettings
    from edgelora.errors import EdgeLoraError
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.recipes import load_recipe, open_recipe
    from edgelora_tools.sources import open_source

    settings = SessionSettings(threads=threads)
    with tempfile.TemporaryDirectory(prefix="edgelora-decoding-") as name:
        folder = Path(name)
        try:
            progress("converting")
            recipe = spec.removeprefix("recipe:")
            known = spec.startswith("recipe:")
            source = open_recipe(load_recipe(recipe), task=TASK) if known else open_source(spec, task=TASK)
            options = ConvertOptions(task=TASK)
            convert(source, folder / "model.edgelora", options)
            plain = _plain_graph(source, options, folder / "plain.onnx", settings)
            bundle = Bundle.open(folder / "model.edgelora", settings)
        except EdgeLoraError as error:
            raise BenchmarkError(str(error)) from error
        progress("reading and writing")
        measured = {length: _sides(bundle, plain, length, tokens) for length in lengths}
        return {"case": "decoding", "source": spec, "threads": threads, "rank": RANK, "tokens": tokens,
                "lengths": measured}  # fmt: skip


def markdown(body: Mapping[str, Any]) -> str:
    """The table."""
    lines = [
        f"{body['source']}, LoRA r{body['rank']} on queries and values, one row, {body['threads']} threads; clock "
        "(processor time)",
        "",
        "| tokens before | a token without points, ms | off | on against off | in ONNX Runtime |",
        "|---|---|---|---|---|",
    ]
    for length, times in body["lengths"].items():
        off, on, run = (
            f"{a[0] / b[0]:.3f} ({a[1] / b[1]:.3f})"
            for a, b in (
                (times["off"], times["plain"]),
                (times["on"], times["off"]),
                (times["run"], times["off"]),
            )
        )
        lines.append(f"| {length} | {times['plain'][0] * 1e3:.2f} | {off} | {on} | {run} |")
    return "\n".join(lines)


def _plain_graph(source: Any, options: Any, path: Path, settings: Any) -> Any:
    """The decode graph of the same source without insertion points."""
    import onnx_ir as ir

    from edgelora.session import Graph
    from edgelora_tools.composites import recognise_composites
    from edgelora_tools.language import decode_graph
    from edgelora_tools.measure_shapes import measure_shapes
    from edgelora_tools.normalize import normalize

    cached = normalize(source.decoder.cached.clone())
    measure_shapes(cached)
    recognise_composites(cached)
    ir.save(decode_graph(cached, (), options), path, external_data="plain.bin")
    return Graph(path, settings)


def _sides(bundle: Any, plain: Any, length: int, tokens: int) -> dict[str, tuple[float, float]]:
    """Seconds a token by side; `run` is that part of `off` that ONNX Runtime takes."""
    from edgelora import LoraConfig
    from edgelora.adapter import absent_adapter, new_adapter
    from edgelora.language.cache import Cache

    manifest, rng = bundle.manifest, np.random.default_rng(0)
    decode = bundle.graph(manifest.language.decode)
    fresh = new_adapter(manifest, LoraConfig(r=RANK, lora_alpha=RANK))
    adapter = fresh.with_tensors(
        {n: (rng.standard_normal(t.shape) * 0.01).astype(np.float32) for n, t in fresh.tensors.items()}
    )
    absent = absent_adapter(manifest)
    caches = {
        "plain": Cache(plain, {}, 1),
        "off": Cache(decode, absent, 1),
        "on": Cache(decode, adapter.feeds(manifest), 1),
    }
    prompt = rng.integers(0, manifest.language.vocabulary, (1, length))
    for cache in caches.values():
        cache.read(prompt)
    one = prompt[:, :1]
    sides: dict[str, Callable[[], Any]] = {
        name: (lambda cache=cache: cache.read(one)) for name, cache in caches.items()
    }
    sides["run"] = _engine(decode, absent, length)
    return in_turn(sides, tokens)


def _engine(graph: Any, adapter: Mapping[str, Any], past: int) -> Callable[[], Any]:
    """A run of the graph for one token and nothing beside it, with so many slots before."""
    from edgelora.session import value_of

    sizes = {"batch": 1, "sequence": 1, "past": past}
    arrays: dict[str, Any] = {"attention_mask": np.ones([1, past + 1], np.int64)}
    for name, shape in graph.inputs.items():
        if name not in adapter and name not in arrays:
            kind = np.float32 if name.startswith("past_key_values.") else np.int64
            arrays[name] = np.zeros([d if isinstance(d, int) else sizes.get(str(d), 1) for d in shape], kind)
    feeds = {name: value_of(array) for name, array in {**arrays, **adapter}.items() if name in graph.inputs}
    return lambda: graph.run_values(feeds, graph.outputs)
