"""A language model's training against PEFT on PyTorch: step, peak memory, held-out loss, and a hard limit of memory.

Same weights, first values, text and threads; fresh processes that take turns; medians. PEFT computes with eager
attention and with sdpa, with and without gradient checkpointing; a ratio is to the best of these. "step": one row.
"batch": four. "last": of one row the last quarter of its tokens is to be foretold. "limit": half a row under a limit.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clinc, figures
from benchmarks.first_values import write_first_values
from benchmarks.job import Job, Settings, TokenRows
from benchmarks.limited import run_limited
from benchmarks.measure import BenchmarkError, Contender, Runs, agreement, alternate
from benchmarks.report import spinning_in_title, table
from benchmarks.tasks.case import unpacked
from edgelora.adapter import new_adapter
from edgelora.bundle import Bundle
from edgelora.config import LoraConfig
from edgelora.errors import EdgeLoraError
from edgelora.text import TextEncoder
from edgelora_tools.compile import ConvertOptions, convert
from edgelora_tools.recipes import cache_folder, fetch, load_recipe
from edgelora_tools.sources import open_source

RECIPE, TASK, TARGETS = "smollm2-135m", "text-generation", ("q_proj", "v_proj")
RANK, ALPHA, RATE, PROBE_STD = 8, 16, 5e-4, 0.02
HELD_OUT, CALIBRATION_TEXTS = 8, 32
ROUNDS = ("step", "batch", "last", "limit")
BASES = ("float32", "int8", "int4")
OURS, THEIRS = "benchmarks.worker_edgelora", "benchmarks.worker_peft_language"
RIVALS = {
    "peft": ("PEFT, sdpa", {"attention": "sdpa"}),
    "peft-again": ("PEFT, sdpa, gradient checkpointing", {"attention": "sdpa", "checkpointing": True}),
    "peft-eager": ("PEFT, eager", {"attention": "eager"}),
    "peft-eager-again": ("PEFT, eager, gradient checkpointing", {"attention": "eager", "checkpointing": True}),
}
AIMS = {
    "step": ("fp32 step", 0.85),
    "batch": ("fp32 step, 4 rows", 0.85),
    "peak": ("fp32 peak memory", 0.50),
    "int8": ("int8 step", 0.50),
    "int8 loss": ("int8 held-out loss, difference to fp32's", 0.01),
    "int4 loss": ("int4 held-out loss, difference to fp32's", 0.01),
    "quantized peak": ("int8 or int4 peak memory", 0.30),
    "last": ("step, the last quarter labelled", 0.70),
}
Progress = Callable[[str], None]


@dataclass(frozen=True)
class LanguageOptions:
    """What the command line chooses. `model` is a Hugging Face directory (None: the recipe).

    `ram` and `small_ram` are budgets in bytes, of the float32 base and of the quantized ones; `limit` is in MiB.
    `spinning` is SessionSettings': whether threads of ours that wait stay awake, as PyTorch's do.
    """

    model: Path | None = None
    rounds: tuple[str, ...] = ROUNDS
    bases: tuple[str, ...] = BASES
    rivals: tuple[str, ...] = tuple(RIVALS)
    length: int = 256
    steps: int = 31
    repeats: int = 2
    threads: int = 2
    spinning: bool | None = None
    ram: int = 660_000_000
    small_ram: int = 376_000_000
    limit: int = 512

    def quick(self) -> LanguageOptions:
        """A smoke run of a few steps."""
        return replace(self, length=16, steps=3, repeats=1, ram=10**12, small_ram=10**12, limit=2048)


def run(options: LanguageOptions, progress: Progress) -> dict[str, Any]:
    """Convert, write the jobs, run the rounds; the body of the report.

    Raises:
        BenchmarkError: the weights or the text cannot be had, or a contender failed.
    """
    with tempfile.TemporaryDirectory(prefix="edgelora-language-") as name:
        folder = Path(name)
        (text,) = unpacked("tinyshakespeare", folder / "text").rglob("input.txt")
        play = text.read_text(encoding="utf-8")
        try:
            model = options.model or saved_model(progress)
            bundles = {base: bundle_of(model, base, play, options, folder, progress) for base in options.bases}
        except EdgeLoraError as error:
            raise BenchmarkError(str(error)) from error
        # Each run proves its files; a thread of ours that did would take a core just as the first run counts them.
        opened = {base: Bundle.open(path, verify=False) for base, path in bundles.items()}
        first = next(iter(opened.values()))
        rows = token_rows(first, play, options.length)
        files = {base: bundle.manifest.files["weights.bin"].size for base, bundle in opened.items()}
        found: dict[str, Any] = {}
        ratios: dict[str, float | None] = dict.fromkeys(AIMS)
        each: dict[str, list[float]] = {}
        for kind in options.rounds:
            progress(f"round {kind}")
            if kind == "limit":
                found[kind] = limited(opened, model, rows, options, folder / kind, progress)
                continue
            chosen = contenders(bundles, options, kind)
            runs = measured(kind, first, chosen, model, rows, options, folder / kind, progress)
            costs = {c.name: {"title": c.title, **cost(runs[c.name])} for c in chosen}
            found[kind] = {"cost": costs, "agreement": _agreement(runs)}
            ratios |= ratios_of(kind, costs)
            each |= {
                name: figures.each_ratio(runs, costs, ours, RIVALS, key)
                for name, (ours, key) in compared(kind, costs).items()
            }
    return {
        "case": options.model.name if options.model else load_recipe(RECIPE).name,
        "options": vars(options) | {"model": None if options.model is None else str(options.model)},
        "machine": {"processor": clinc.processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "weights_bytes": files,
        "aims": {key: aim for key, (_, aim) in AIMS.items()},
        "ratios": ratios,
        "each_ratio": each,
        "rounds": found,
    }


def saved_model(progress: Progress) -> Path:
    """The recipe's model as a Hugging Face directory of float32 weights, made once from its file of codes."""
    import torch
    import transformers

    source = fetch(load_recipe(RECIPE), progress)
    (file,) = [source] if source.is_file() else source.glob("*.gguf")
    path = cache_folder() / "benchmarks" / f"{RECIPE}-float32"
    if not (path / "tokenizer.json").is_file():
        progress("reading the model's codes")
        given: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
        coded: Any = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
        del coded.config.quantization_config  # with which transformers would not write it
        real = transformers.AutoModelForCausalLM.from_config(coded.config, dtype=torch.float32)
        real.load_state_dict(coded.state_dict())
        real.save_pretrained(path)
        transformers.AutoTokenizer.from_pretrained(file.parent, **given).save_pretrained(path)
    return path


def bundle_of(model: Path, base: str, play: str, options: LanguageOptions, folder: Path, progress: Progress) -> Path:
    """The bundle of a base, converted anew whenever the converter's source has changed; calibrated on training text."""
    what = repr((str(model), base, clinc.source_digest()))
    name = f"{model.name}-{base}-{hashlib.sha256(what.encode()).hexdigest()[:16]}.edgelora"
    path = cache_folder() / "benchmarks" / name
    if (path / "bundle.json").is_file():
        return path
    progress(f"converting to {base}")
    further: dict[str, Any] = {}
    if base != "float32":
        speeches = [speech for speech in play[: len(play) // 2].split("\n\n") if len(speech) > 200]
        sample = folder / "calibration.txt"
        sample.write_text("\n".join(s.replace("\n", " ") for s in speeches[:CALIBRATION_TEXTS]), encoding="utf-8")
        further = {"quantize": base, "calibration": sample}
    chosen = ConvertOptions(
        task=TASK, target_modules=TARGETS, batch_size=1, length=options.length, overwrite=True, **further
    )
    convert(open_source(str(model), task=TASK), path, chosen)
    return path


def token_rows(bundle: Bundle, play: str, length: int) -> np.ndarray:
    """The play's tokens in rows `[rows, length]`."""
    encoder = TextEncoder(bundle.path, bundle.manifest.preprocessing, bundle.manifest.inputs)
    tokens = np.concatenate(encoder.tokens(play.split("\n\n")))
    return tokens[: len(tokens) // length * length].reshape(-1, length)


def contenders(bundles: Mapping[str, Path], options: LanguageOptions, kind: str) -> list[Contender]:
    """Ours and PEFT's of a round: quantized bases, and what keeps to a budget, in the first alone."""
    awake = spinning_in_title(options.spinning)

    def ours(base: str, ram: int | None = None) -> Contender:
        given = {"bundle": str(bundles[base]), "session": {"spinning": options.spinning}}
        if ram is None:
            return Contender(base, f"EdgeLoRA, {base}{awake}", OURS, given)
        title = f"EdgeLoRA, {base}, --ram {ram / 1e6:.0f}MB{awake}"
        return Contender(f"{base}-small", title, OURS, given | {"ram": ram})

    found: list[Contender] = [ours("float32")] if "float32" in bundles else []
    if kind == "step":
        for base in bundles:
            found += [ours(base)] if base == "int8" else []
            found.append(ours(base, options.ram if base == "float32" else options.small_ram))
    return [*found, *(Contender(who, RIVALS[who][0], THEIRS, RIVALS[who][1]) for who in options.rivals)]


def measured(
    kind: str,
    bundle: Bundle,
    chosen: Sequence[Contender],
    model: Path,
    rows: np.ndarray,
    options: LanguageOptions,
    folder: Path,
    progress: Progress,
) -> Runs:
    """Every contender's runs of a round."""
    batch, counted = (4 if kind == "batch" else 1), options.length // 4 if kind == "last" else options.length - 1
    jobs = [write_job(folder / str(r), bundle, model, rows, batch, counted, options, r) for r in range(options.repeats)]
    return alternate(chosen, jobs, folder / "runs", options.threads, progress)


def write_job(
    folder: Path,
    bundle: Bundle,
    model: Path,
    rows: np.ndarray,
    batch: int,
    counted: int,
    options: LanguageOptions,
    repeat: int,
) -> Path:
    """The files of one run: rows of the play, others held out from its end, first values, and others with a B that is
    not zero."""
    rng = np.random.default_rng(repeat)
    train = rng.permutation(rows[: len(rows) // 2])[: batch * options.steps]
    settings = Settings(
        bundle=str(bundle.path),
        model=str(model),
        threads=options.threads,
        epochs=1,
        batch_size=batch,
        learning_rate=RATE,
        max_steps=None,
    )
    order = np.arange(len(train))[None]
    Job(folder, settings, TokenRows(train, counted), TokenRows(rows[-HELD_OUT:], counted), order).write()
    initial = new_adapter(bundle.manifest, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS), rng=rng)
    write_first_values(folder, initial, rng, PROBE_STD)
    return folder


def cost(runs: Sequence[Any]) -> dict[str, Any]:
    """Figures of a contender, with the loss of what was held out."""
    further = {"held_out_loss": figures.spread(run.result["held_out_loss"] for run in runs)}
    plan = runs[0].result.get("plan")
    return figures.cost(runs) | further | ({"plan": plan} if plan else {})


def compared(kind: str, costs: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Which of ours is compared with the best of PEFT's, and what of it, by the names of the aims."""
    if kind != "step":
        return {kind: ("float32", "step_seconds")}
    found = {
        "step": ("float32", "step_seconds"),
        "peak": ("float32-small", "peak_memory_mb"),
        "int8": ("int8", "step_seconds"),
    }
    small = figures.best(costs, ("int8-small", "int4-small"), "peak_memory_mb")
    return found if small is None else found | {"quantized peak": (small, "peak_memory_mb")}


def ratios_of(kind: str, costs: Mapping[str, Any]) -> dict[str, float | None]:
    """Ours to the best of PEFT's, by the names of the aims."""
    found = {name: figures.ratio(costs, ours, RIVALS, key)[0] for name, (ours, key) in compared(kind, costs).items()}
    if kind != "step":
        return found
    for base in ("int8", "int4"):
        if f"{base}-small" in costs and "float32" in costs:
            ours, real = (costs[who]["held_out_loss"]["median"] for who in (f"{base}-small", "float32"))
            found[f"{base} loss"] = abs(ours / real - 1)
    return found


def _agreement(runs: Runs) -> dict[str, Any] | None:
    """How near our float32 gradients and losses are to those of PEFT."""
    rivals = [who for who in RIVALS if who in runs]
    if "float32" not in runs or not rivals:
        return None
    return agreement(runs["float32"], runs[rivals[0]], len(runs["float32"][0].result["losses"]))


def limited(
    bundles: Mapping[str, Bundle],
    model: Path,
    rows: np.ndarray,
    options: LanguageOptions,
    folder: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Rows of half the length under a hard limit of memory: each base within a budget, and PEFT's setting of least
    memory."""
    length = options.length // 2
    bundle = next(iter(bundles.values()))
    job = write_job(folder, bundle, model, rows[:, :length], 1, length - 1, replace(options, steps=3), 0)
    entries: list[tuple[Contender, Path]] = []
    for base, opened in bundles.items():
        title, given = f"EdgeLoRA, {base}, --ram {options.small_ram / 1e6:.0f}MB", {"ram": options.small_ram}
        entries.append((Contender(base, title, OURS, given | {"bundle": str(opened.path)}), opened.path))
    title, given = RIVALS["peft-again"]
    entries.append((Contender("peft-again", title, THEIRS, given), model))
    found: list[dict[str, Any]] = []
    for contender, folder_of_weights in entries:
        progress(f"{contender.title} within {options.limit} MiB")
        files = [path for path in sorted(folder_of_weights.iterdir()) if path.is_file()]
        results = folder / "runs" / contender.name
        found.append(run_limited(contender, job, results, options.threads, options.limit, files))
    return found


def markdown(body: Mapping[str, Any]) -> str:
    """A table a round, and the ratios beside their aims."""
    options, machine = body["options"], body["machine"]
    sizes = ", ".join(f"{base} {size / 1e6:.0f} MB" for base, size in body["weights_bytes"].items())
    blocks = [
        f"{body['case']}, LoRA r{RANK} on {' and '.join(TARGETS)}: rows of {options['length']} tokens, "
        f"{options['steps']} steps, {options['threads']} threads, medians of {options['repeats']} runs in turn. "
        f"weights.bin: {sizes}. {machine['processor']}, {machine['cores']} cores."
    ]
    for kind, found in body["rounds"].items():
        if kind == "limit":
            rows = [[one["contender"], *_limited_row(one)] for one in found]
            head = [f"within {options['limit']} MiB ({found[0]['kind']})", "completed", "step, ms", "peak, MiB"]
            blocks.append(table([*head, "the limit's own peak, MiB", "hits"], rows))
            continue
        rows = [[one["title"], *_row(one)] for one in found["cost"].values()]
        blocks.append(table([f"round {kind}", "step, ms", "peak, MiB", "first step after, s", "held-out loss"], rows))
        if (near := found["agreement"]) is not None:
            worst = ", ".join(f"{w['relative_error']:.1e} ({at})" for at, w in near["gradients"].items())
            blocks.append(
                f"float32 against PEFT: gradients {worst}, losses of {near['steps']} steps {near['loss']:.1e}."
            )
    ratios = [
        [
            title,
            "—" if body["ratios"][key] is None else f"{body['ratios'][key]:.3f}",
            figures.listed(body["each_ratio"].get(key, [])),
            f"≤ {aim:g}",
        ]
        for key, (title, aim) in AIMS.items()
    ]
    blocks.append(table(["to the best of PEFT's", "ratio", "of each run", "aim"], ratios))
    return "\n\n".join(blocks)


def _row(one: Mapping[str, Any]) -> list[str]:
    step, peak, start, loss = (
        one[key]["median"] for key in ("step_seconds", "peak_memory_mb", "cold_start_seconds", "held_out_loss")
    )
    return [f"{step * 1e3:.0f}", f"{peak:.0f}", f"{start:.2f}", f"{loss:.4f}"]


def _limited_row(one: Mapping[str, Any]) -> list[str]:
    peak, hits = one["limit_peak_mb"], one.get("limit_hits")
    counted = ["—" if peak is None else f"{peak:.0f}", "—" if hits is None else f"{hits:,}"]
    if not one["completed"]:
        return [f"no: {'killed' if one.get('limit_kills') else one['reason']}", "—", "—", *counted]
    return [f"{one['steps']} steps", f"{one['step_seconds'] * 1e3:.0f}", f"{one['peak_memory_mb']:.0f}", *counted]
