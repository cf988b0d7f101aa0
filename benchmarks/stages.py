"""What a stage of the conversion brings: one source converted with it and without it, both bundles measured in turn.

A step is one run of the cotangent graph. Step times alternate in one process, and their ratio is of medians;
peak memory is that of a fresh process that takes three steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.measure import BenchmarkError, process_environment

STAGES: dict[str, tuple[str, Callable[..., Any]]] = {
    "composites": ("edgelora_tools.compile.recognise_composites", lambda model, **_: model),
    "codes": ("edgelora_tools.normalize.decodes", lambda node: False),
}
"""The name of a stage: what stands for it, and what replaces that where the stage is left out."""

WITH, WITHOUT = "with", "without"
_WARM = 2


def llama() -> tuple[Any, dict[str, Any]]:
    """A Llama of four layers of width 384 with random weights: the default source."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=4,
        hidden_size=384,
        intermediate_size=1024,
        vocab_size=999,
        num_attention_heads=6,
        num_key_value_heads=2,
        use_cache=False,
    )
    ids = torch.ones(2, 8, dtype=torch.long)
    return transformers.LlamaModel(config).eval(), {"input_ids": ids, "attention_mask": ids}


def run(
    stage: str, source: str, batch: int, length: int, steps: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Convert `source` both ways and measure; the body of the report.

    Raises:
        BenchmarkError: the source cannot be converted, or a measurement failed.
    """
    from edgelora.bundle import Bundle
    from edgelora.errors import EdgeLoraError
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.sources import open_source

    with tempfile.TemporaryDirectory(prefix="edgelora-stages-") as folder:
        bundles: dict[str, Bundle] = {}
        try:
            opened = open_source(source)
            for side in (WITH, WITHOUT):
                progress(f"{source}, {side} {stage}")
                path = Path(folder) / f"{side}.edgelora"
                with left_out(stage) if side == WITHOUT else nullcontext():
                    convert(opened, path, ConvertOptions(task="feature-extraction"))
                bundles[side] = Bundle.open(path)
        except EdgeLoraError as error:
            raise BenchmarkError(str(error)) from error
        feeds = {side: cotangent_feeds(bundle, batch, length) for side, bundle in bundles.items()}
        progress("steps in turn")
        seconds = _steps(bundles, feeds, steps)
        peaks = {side: peak_of(Path(folder), side, feeds[side]) for side in bundles}
        sizes = {side: bundle.manifest.files["weights.bin"].size for side, bundle in bundles.items()}
    body = {"case": "stages", "stage": stage, "source": source, "batch": batch, "length": length, "steps": steps}
    return body | {"seconds": seconds, "peak_bytes": peaks, "weights_bytes": sizes}


def markdown(body: Mapping[str, Any]) -> str:
    """The table: each side and the ratio."""
    rows = [("step, ms (median)", body["seconds"], 1e3), ("peak memory, MB", body["peak_bytes"], 1e-6)]
    rows.append(("weights.bin, MB", body["weights_bytes"], 1e-6))
    lines = [
        f"{body['source']}, {body['batch']} × {body['length']}, stage: {body['stage']}",
        "",
        "| | with | without | ratio |",
        "|---|---|---|---|",
    ]
    for label, values, factor in rows:
        a, b = (values[side] * factor for side in (WITH, WITHOUT))
        lines.append(f"| {label} | {a:,.1f} | {b:,.1f} | {a / b:.2f} |")
    return "\n".join(lines)


def left_out(stage: str) -> AbstractContextManager[Any]:
    """While it is entered, conversion does without the stage."""
    target, replacement = STAGES[stage]
    return patch(target, replacement)


def cotangent_feeds(bundle: Any, batch: int, length: int) -> dict[str, np.ndarray]:
    """`batch` × `length` of what the bundle's first sample holds, an adapter at every point, a cotangent."""
    from edgelora.parity import parity_samples
    from edgelora.probes import loss_feeds, whole_adapter

    rng, one_row = np.random.default_rng(0), parity_samples(bundle)[0][0]
    inputs = {}
    for spec in bundle.manifest.inputs:
        shape = [d if isinstance(d, int) else batch if axis == 0 else length for axis, d in enumerate(spec.shape)]
        inputs[spec.name] = np.resize(one_row[spec.name], shape)
    values = whole_adapter(bundle, inputs, rng)
    outputs = bundle.forward.run({**inputs, **values})
    record = bundle.training("cotangent", dropout=False)
    return {**inputs, **values, **loss_feeds(bundle.manifest, record, inputs, outputs, rng)}


def _steps(bundles: Mapping[str, Any], feeds: Mapping[str, Mapping[str, np.ndarray]], steps: int) -> dict[str, float]:
    graphs = {side: b.graph(b.training("cotangent", dropout=False).file) for side, b in bundles.items()}
    seconds: dict[str, list[float]] = {side: [] for side in bundles}
    for step in range(steps + _WARM):
        for side, graph in graphs.items():
            started = time.perf_counter()
            graph.run(feeds[side])
            if step >= _WARM:
                seconds[side].append(time.perf_counter() - started)
    return {side: float(np.median(s)) for side, s in seconds.items()}


def peak_of(folder: Path, side: str, feeds: Mapping[str, np.ndarray]) -> int:
    np.savez(folder / f"{side}.npz", **feeds)  # pyright: ignore[reportArgumentType]
    command = [sys.executable, "-m", "benchmarks.stages", str(folder / f"{side}.edgelora"), str(folder / f"{side}.npz")]
    done = subprocess.run(command, env=process_environment(2), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the process that measures memory failed: {done.stderr.strip().splitlines()[-1]}")
    return int(json.loads(done.stdout))


def _measure_peak(bundle: str, feeds: str) -> None:
    """In a fresh process: three steps, and the peak resident memory on standard output."""
    from edgelora.bundle import Bundle
    from edgelora.memory import peak_memory

    opened = Bundle.open(bundle)
    with np.load(feeds) as archive:
        given = dict(archive)
    graph = opened.graph(opened.training("cotangent", dropout=False).file)
    for _ in range(3):
        graph.run(given)
    sys.stdout.write(json.dumps(peak_memory()))


if __name__ == "__main__":
    _measure_peak(*sys.argv[1:])
