"""What a worker reads and writes: one training run, described by files that every contender shares.

A job folder holds `job.json`, `data.npz`, and two adapters in PEFT's layout: `initial`, where training
starts, and `probe`, whose B is not zero, so that every gradient there says something. A worker writes
`result.json` and `gradients.npz`. This file imports numpy only: it is part of every measured process.

Contenders train in turns, `TURN` steps each, so that whatever else the machine does meets all of them:
a worker that ends its turn writes a line to standard output and waits for one on standard input. Cores that waited
are slow for some milliseconds, which short steps feel more than long ones; where epochs are timed, those after the
first are one turn, as training has no pauses either.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

JOB_FILE, DATA_FILE, RESULT_FILE, GRADIENTS_FILE = "job.json", "data.npz", "result.json", "gradients.npz"
INITIAL, PROBE = "initial", "probe"
EVALUATION_BATCH = 64
TURN, TURN_ENDS = 10, "turn ends"
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """The run: the same for every contender. `max_steps` cuts it short; `threads` is per process.

    `micro_batch_size` is for contenders that can cut a batch into parts by length. `unbroken`: the epochs after the
    first are one turn.
    """

    bundle: str
    model: str
    threads: int
    epochs: int
    batch_size: int
    learning_rate: float
    max_steps: int | None
    pad_id: int = 0
    micro_batch_size: int | None = None
    image_input: str = "image"
    unbroken: bool = False


class Texts:
    """Tokenized texts with their labels, padded batch by batch on the right."""

    def __init__(self, tokens: Ints, offsets: Ints, labels: Ints, pad_id: int) -> None:
        self.tokens, self.offsets, self.labels, self.pad_id = tokens, offsets, labels, pad_id
        self.least_width = 0

    @classmethod
    def of(cls, ids: Sequence[Sequence[int]], labels: Sequence[int], pad_id: int) -> Texts:
        """Texts from token ids per text."""
        tokens = np.asarray([token for row in ids for token in row], np.int64)
        offsets = np.cumsum([0, *(len(row) for row in ids)], dtype=np.int64)
        return cls(tokens, offsets, np.asarray(labels, np.int64), pad_id)

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> Ints:
        """The number of tokens of each text."""
        return np.diff(self.offsets)

    def feeds(self, rows: Ints) -> dict[str, NDArray[np.generic]]:
        """`input_ids`, `attention_mask` and `token_type_ids` `[rows, longest]`, or as wide as `least_width`."""
        width = max(int(self.lengths()[rows].max()), self.least_width)
        ids = np.full((len(rows), width), self.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            text = self.tokens[self.offsets[row] : self.offsets[row + 1]]
            ids[i, : len(text)] = text
            mask[i, : len(text)] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def evaluation_batches(self) -> Iterator[Ints]:
        """All rows, batches of similar length."""
        order = np.argsort(self.lengths(), kind="stable")
        for start in range(0, len(order), EVALUATION_BATCH):
            yield order[start : start + EVALUATION_BATCH]


class Images:
    """Pictures as the input `name` takes them, float32 `[images, channels, height, width]`, with their labels.

    `boxes` `[images, 4]`, if the labels are those of objects, are where these are.
    """

    def __init__(
        self, pixels: NDArray[np.float32], labels: Ints, boxes: NDArray[np.float32] | None = None, name: str = "image"
    ) -> None:
        self.pixels, self.labels, self.boxes, self.name = pixels, labels, boxes, name

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> Ints:
        """Ones: all cost the same."""
        return np.ones(len(self), np.int64)

    def feeds(self, rows: Ints) -> dict[str, NDArray[np.generic]]:
        """The one input."""
        return {self.name: self.pixels[rows]}

    def evaluation_batches(self) -> Iterator[Ints]:
        """All rows, in order."""
        for start in range(0, len(self), EVALUATION_BATCH):
            yield np.arange(start, min(start + EVALUATION_BATCH, len(self)))


class TokenRows:
    """Text as rows of tokens `[rows, tokens]`, all whole; of each the last `counted` tokens are to be foretold."""

    def __init__(self, tokens: Ints, counted: int) -> None:
        self.tokens, self.counted = tokens, counted

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labels(self) -> Ints:
        """The tokens to foretell `[rows, tokens]`, each at its own place, elsewhere −100, as transformers has them."""
        return np.where(np.arange(self.tokens.shape[1]) < self.tokens.shape[1] - self.counted, -100, self.tokens)

    def lengths(self) -> Ints:
        """The number of tokens of each row."""
        return np.full(len(self), self.tokens.shape[1], np.int64)

    def feeds(self, rows: Ints) -> dict[str, NDArray[np.generic]]:
        """`input_ids`, `attention_mask` and `position_ids` `[rows, tokens]`."""
        ids = self.tokens[rows]
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.ascontiguousarray(positions)}

    def evaluation_batches(self) -> Iterator[Ints]:
        """The rows one by one."""
        yield from np.arange(len(self))[:, None]


@dataclass(frozen=True)
class Job:
    """A run with its data. `order` `[epochs, samples]` is the order of the training samples in each epoch."""

    folder: Path
    settings: Settings
    train: Any
    test: Any
    order: Ints

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.settings.batch_size)

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.settings.epochs
        return steps if self.settings.max_steps is None else min(steps, self.settings.max_steps)

    def batches(self) -> list[Ints]:
        """The rows of every step of the run."""
        size = self.settings.batch_size
        batches = [epoch[i : i + size] for epoch in self.order for i in range(0, len(epoch), size)]
        return batches[: self.total_steps]

    def ends_epoch(self, step: int) -> bool:
        """Whether the step (from 0) is its epoch's last, or the run's."""
        return (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.total_steps

    def ends_turn(self, step: int) -> bool:
        """Whether the others have theirs after this step (from 0)."""
        last = self.steps_per_epoch - 1  # of the first epoch
        if self.settings.unbroken and step >= last:
            return step == last
        return step % TURN == 0

    def write(self) -> None:
        """Write `job.json` and `data.npz`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / JOB_FILE).write_text(json.dumps(asdict(self.settings)), encoding="utf-8")
        arrays: dict[str, Any] = {"order": self.order}
        for name, part in (("train", self.train), ("test", self.test)):
            if isinstance(part, TokenRows):
                arrays |= {f"{name}_rows": part.tokens, f"{name}_counted": np.int64(part.counted)}
                continue
            arrays[f"{name}_labels"] = part.labels
            if isinstance(part, Images):
                arrays[f"{name}_pixels"] = part.pixels
                if part.boxes is not None:
                    arrays[f"{name}_boxes"] = part.boxes
            else:
                arrays |= {f"{name}_tokens": part.tokens, f"{name}_offsets": part.offsets}
        np.savez(self.folder / DATA_FILE, **arrays)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read what `write` wrote."""
        settings = Settings(**json.loads((folder / JOB_FILE).read_text(encoding="utf-8")))
        with np.load(folder / DATA_FILE) as file:
            arrays = {name: file[name] for name in file.files}

        def part(name: str) -> Texts | Images | TokenRows:
            if f"{name}_rows" in arrays:
                return TokenRows(arrays[f"{name}_rows"], int(arrays[f"{name}_counted"]))
            labels = arrays[f"{name}_labels"]
            if f"{name}_pixels" in arrays:
                return Images(arrays[f"{name}_pixels"], labels, arrays.get(f"{name}_boxes"), settings.image_input)
            return Texts(arrays[f"{name}_tokens"], arrays[f"{name}_offsets"], labels, settings.pad_id)

        return cls(folder, settings, part("train"), part("test"), arrays["order"])


def peak_memory_mb() -> float:
    """The largest resident set of this process so far, in MiB.

    VmHWM, which `getrusage` equals for a process started from a small one: ru_maxrss survives exec, so it
    would count the parent's memory as well.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


class Recorder:
    """Takes the measurements of a run, the same way for every contender.

    `started` is the wall-clock time at which the parent started this process, so that a cold start
    counts the interpreter and the imports.
    """

    def __init__(self, name: str, job: Job, started: float) -> None:
        self.name, self.job, self.started = name, job, started
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.gradients: dict[str, NDArray[np.float32]] = {}
        self.cold_start = self.peak_training = 0.0
        self._begun = self._begun_cpu = 0.0

    def begin_step(self) -> None:
        self._begun_cpu, self._begun = time.process_time(), time.perf_counter()

    def end_step(self, loss: float) -> None:
        self.seconds.append(time.perf_counter() - self._begun)
        self.cpu_seconds.append(time.process_time() - self._begun_cpu)
        if not self.losses:
            self.cold_start = time.time() - self.started
        self.losses.append(loss)
        if self.job.ends_epoch(len(self.losses) - 1):
            epoch = -(-len(self.losses) // self.job.steps_per_epoch)
            self.say(f"epoch {epoch}, loss {loss:.4f}, {sum(self.seconds):.1f} s")

    def next_turn(self) -> None:
        """Let the others have theirs, after the first step (the cold start) and every `TURN` steps from there."""
        if self.job.ends_turn(len(self.losses) - 1):
            wait_for_turn()

    def end_training(self) -> None:
        """The peak is taken here: evaluation comes after it, so only training counts."""
        self.peak_training = peak_memory_mb()
        wait_for_turn()

    def keep_gradients(self, at: str, gradients: Mapping[str, NDArray[np.float32]]) -> None:
        """Gradients `{point}.lora_A` `[r, in]`, `{point}.lora_B` `[out, r]` and of the head, at an adapter."""
        self.gradients |= {f"{at}/{name}": np.array(gradient, np.float32) for name, gradient in gradients.items()}

    def say(self, text: str) -> None:
        print(f"  {self.name}: {text}", file=sys.stderr, flush=True)

    def write(
        self, folder: Path, accuracies: Sequence[float], versions: Mapping[str, str], further: Mapping[str, Any] = {}
    ) -> None:
        result = {
            "contender": self.name,
            "losses": self.losses,
            "step_seconds": self.seconds,
            "step_cpu_seconds": self.cpu_seconds,
            "epoch_ends": [step for step in range(len(self.losses)) if self.job.ends_epoch(step)],
            "accuracy": list(accuracies),
            "tokens": [int(self.job.train.lengths()[rows].sum()) for rows in self.job.batches()[: len(self.losses)]],
            "cold_start_seconds": self.cold_start,
            "peak_memory_mb": self.peak_training,
            "peak_memory_with_evaluation_mb": peak_memory_mb(),
            "versions": dict(versions),
            "modules": sorted({name.partition(".")[0] for name in sys.modules}),
            **further,
        }
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / GRADIENTS_FILE, **self.gradients)  # pyright: ignore[reportArgumentType]
        (folder / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")


def wait_for_turn() -> None:
    """Hand the turn back to the parent, and wait until it comes again."""
    print(TURN_ENDS, flush=True)
    sys.stdin.readline()


def worker_arguments() -> tuple[Path, Path, float]:
    """(job folder, result folder, wall-clock time of the start) from the command line."""
    job, result, started = sys.argv[1:4]
    return Path(job), Path(result), float(started)


def worker_options() -> dict[str, Any]:
    """The contender's own settings, from the command line."""
    return json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
