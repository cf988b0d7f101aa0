"""Conversion time and memory against the size of the graph: Llama decoders of growing depth, each in a fresh process.

All are exported beforehand, in one process: the first carries what torch does once.

What is timed is everything after torch's export: normal form, measured shapes, insertion points, two backward
passes, parity samples, writing; not the check of the finished bundle. Seconds are of processor time, which
other work on the machine disturbs less than the clock.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, BenchmarkError, process_environment

SIZES: dict[str, dict[str, Any]] = {
    "thin": {"hidden_size": 48, "intermediate_size": 96, "vocab_size": 99, "num_attention_heads": 3},
    "smollm2-135m": {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152, "num_attention_heads": 9},
}
KEY_HEADS = 3


@dataclass(frozen=True)
class Conversion:
    """One conversion: nodes of the exported graph, seconds of processor time, peak resident bytes."""

    layers: int
    nodes: int
    export_seconds: float
    seconds: float
    peak_bytes: int | None

    @property
    def per_thousand(self) -> float:
        """Seconds for 1,000 nodes."""
        return 1000 * self.seconds / self.nodes


def run(layers: Sequence[int], size: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """Convert a decoder of each depth; the body of the report.

    Raises:
        BenchmarkError: a conversion failed; its last line is in the message.
    """
    made: list[Conversion] = []
    with tempfile.TemporaryDirectory(prefix="edgelora-conversion-") as name:
        folder = Path(name)
        progress(f"{size}, torch's export")
        _worker("export", folder, size, *layers)
        for depth in layers:
            progress(f"{size}, {depth} layers")
            _worker("convert", folder, size, depth)
            told = {step: json.loads((folder / f"{depth}/{step}.json").read_text()) for step in ("export", "convert")}
            made.append(Conversion(depth, **told["export"], **told["convert"]))
    return {"case": "conversion", "size": size, "conversions": [asdict(c) for c in made]}


def markdown(body: Mapping[str, Any]) -> str:
    """The table: cost by depth, and the cost of 1,000 nodes, which is constant where growth is linear."""
    rows = [Conversion(**c) for c in body["conversions"]]
    lines = [
        f"Conversion of Llama decoders ({body['size']}), adapters on q and v",
        "",
        "| layers | nodes | torch's export, s | conversion, s | s per 1,000 nodes | peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for c in rows:
        peak = "—" if c.peak_bytes is None else f"{c.peak_bytes / 1e6:,.0f}"
        lines.append(
            f"| {c.layers} | {c.nodes:,} | {c.export_seconds:.1f} | {c.seconds:.1f} | {c.per_thousand:.2f} | {peak} |"
        )
    return "\n".join(lines)


def _worker(step: str, folder: Path, size: str, *layers: int) -> None:
    command = [sys.executable, "-m", "benchmarks.conversion", step, str(folder), size, *map(str, layers)]
    done = subprocess.run(command, env=process_environment(1), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BenchmarkError(f"{step} of {' and '.join(map(str, layers))} layers failed: {last[0]}")


def _export(exported: Path, layers: int, size: str) -> None:
    """The decoder with random weights, as an ONNX file."""
    import onnx_ir as ir
    import torch
    import transformers

    from edgelora_tools.sources.torch_export import module_source

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES[size], num_hidden_layers=layers, num_key_value_heads=KEY_HEADS, tie_word_embeddings=True
    )
    module = transformers.LlamaForCausalLM(config).eval()
    ids = torch.ones(2, 8, dtype=torch.long)
    started = time.process_time()
    inputs = {"input_ids": ids, "attention_mask": ids}
    source = module_source(module, inputs, "decoder", extra={"use_cache": False}, outputs=["logits"])
    seconds = time.process_time() - started
    ir.save(source.model, exported, external_data="decoder.data")
    report = {"nodes": len(source.model.graph), "export_seconds": seconds}
    exported.with_name("export.json").write_text(json.dumps(report))


def _convert(exported: Path) -> None:
    from edgelora.memory import peak_memory
    from edgelora_tools.compile import ConvertOptions, convert
    from edgelora_tools.sources import open_source

    started = time.process_time()
    options = ConvertOptions(task="feature-extraction", target_modules=("q_proj", "v_proj"))
    convert(open_source(str(exported)), exported.with_name("decoder.edgelora"), options)
    report = {"seconds": time.process_time() - started, "peak_bytes": peak_memory()}
    exported.with_name("convert.json").write_text(json.dumps(report))


def _main(step: str, folder: str, size: str, *layers: str) -> None:
    for depth in layers:
        exported = Path(folder) / depth / "decoder.onnx"
        exported.parent.mkdir(exist_ok=True)
        if step == "export":
            _export(exported, int(depth), size)
        else:
            _convert(exported)


if __name__ == "__main__":
    _main(*sys.argv[1:])
