"""`python -m benchmarks.language_curve BUNDLE MODEL TEXT`: a language model trained by EdgeLoRA and PEFT, step by step.

MODEL is the Hugging Face directory that BUNDLE was made from, TEXT a file that both read in the same order. Both begin
with one adapter, and take turns in one process: gradients of the first step, the loss of every step, processor time.

PEFT can compute in float64 (`--dtype float64`), which tells whose float32 is nearer: torch's loss of a vocabulary of
49,152 is 2.4e-6 too low, and some of its gradients 4e-4 off.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from edgelora.adapter import Adapter, new_adapter, write_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.optimizers import AdamW
from edgelora.session import SessionSettings

Batch = tuple[np.ndarray, np.ndarray]
Step = Callable[[Batch], tuple[float, dict[str, np.ndarray]]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    bundle = Bundle.open(options.bundle, SessionSettings(threads=options.threads))
    config = LoraConfig(r=8, lora_alpha=16, target_modules=tuple(options.targets))
    adapter = new_adapter(bundle.manifest, config)
    torch.set_num_threads(options.threads)
    sides = {
        "EdgeLoRA": edgelora_steps(bundle, adapter, options.learning_rate),
        "PEFT": peft_steps(options, adapter),
    }
    losses: dict[str, list[float]] = {name: [] for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, batch in enumerate(batches(options.model, options.text, options.rows, options.tokens, options.steps)):
        first: dict[str, dict[str, np.ndarray]] = {}
        for name, step in sides.items():
            began = time.process_time()
            loss, gradients = step(batch)
            seconds[name].append(time.process_time() - began)
            losses[name].append(loss)
            first[name] = gradients
        if number == 0:
            ours, theirs = first.values()
            gaps = [np.linalg.norm(ours[n] - g) / np.linalg.norm(g) for n, g in theirs.items() if g.any()]
            print(f"gradients of the first step: {len(gaps)} tensors, at most {max(gaps):.1e} apart", flush=True)
        print(number + 1, *(f"{name} {values[-1]:.6f}" for name, values in losses.items()), flush=True)
    ours, theirs = (np.array(values) for values in losses.values())
    print(f"losses at most {np.abs(ours - theirs).max():.1e} apart, {np.abs(ours / theirs - 1).max():.1e} of a loss")
    times = [statistics.median(values) for values in seconds.values()]
    print(f"processor seconds a step, medians: {times[0]:.2f} and {times[1]:.2f}, ratio {times[0] / times[1]:.2f}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.language_curve", description=__doc__)
    made.add_argument("bundle", type=Path)
    made.add_argument("model", type=Path)
    made.add_argument("text", type=Path)
    made.add_argument("--steps", type=int, default=50)
    made.add_argument("--rows", type=int, default=1)
    made.add_argument("--tokens", type=int, default=256)
    made.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    made.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    made.add_argument("--dtype", default="float32", choices=["float32", "float64"], help="of PEFT; ours is float32")
    made.add_argument("--learning-rate", type=float, default=1e-3)
    made.add_argument("--threads", type=int, default=1)
    return made


def batches(model: Path, text: Path, rows: int, tokens: int, steps: int) -> Iterator[Batch]:
    """Ids and the tokens that come next, `[rows, tokens]` each; the text from its beginning, and again."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    ids = np.array(tokenizer(text.read_text(encoding="utf-8"))["input_ids"])
    places = np.arange(rows * tokens).reshape(rows, tokens)
    for step in range(steps):
        at = places + step * rows * tokens
        yield ids[at % len(ids)], ids[(at + 1) % len(ids)]


def edgelora_steps(bundle: Bundle, adapter: Adapter, learning_rate: float) -> Step:
    """Steps of AdamW on the bundle's training graph; the gradients are of A and B, the scale included."""
    graph = bundle.graph(bundle.training("cross-entropy", dropout=False).file)
    tensors = {name: np.array(x) for name, x in adapter.tensors.items()}
    scale, optimizer = np.float32(2.0), AdamW()

    def step(batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
        ids, after = batch
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
            "labels": after,
            "loss_weight": np.full(ids.shape, 1 / ids.size, np.float32),
        }
        made = graph.run(feeds | {n: x * scale if n.endswith("lora_B") else x for n, x in tensors.items()})
        gradients = {n: made[f"grad.{n}"] * (scale if n.endswith("lora_B") else np.float32(1)) for n in tensors}
        optimizer.step(tensors, gradients, learning_rate)
        return float(made["loss"]), gradients

    return step


def peft_steps(options: argparse.Namespace, adapter: Adapter) -> Step:
    """The same by PEFT, which reads the adapter from its files."""
    causal: Any = transformers.AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation=options.attention
    )
    causal.config.use_cache = False
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(adapter, Path(folder))
        wrapped: Any = peft.PeftModel.from_pretrained(causal, folder, is_trainable=True)
    wrapped.to(causal.dtype).eval()
    named = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter
        for name, parameter in wrapped.named_parameters()
        if parameter.requires_grad
    }
    optimizer = torch.optim.AdamW(named.values(), lr=options.learning_rate, weight_decay=0.0)

    def step(batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
        ids, after = map(torch.from_numpy, batch)
        optimizer.zero_grad()
        logits = wrapped(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), after.flatten())
        loss.backward()
        gradients = {name: parameter.grad.numpy().T.copy() for name, parameter in named.items()}
        optimizer.step()
        return float(loss.detach()), gradients

    return step


if __name__ == "__main__":
    main()
