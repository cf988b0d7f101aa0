"""The same training run by PEFT on PyTorch, set up as its documentation does.

Options: `attention` ("sdpa", "eager"), `compile` (torch.compile with dynamic shapes), `full` (no adapters: every weight
is trained), `learning_rate` (else the job's).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.job import INITIAL, PROBE, Job, Recorder, Texts, worker_arguments, worker_options

CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"
CONFIG_KEYS = ("r", "lora_alpha", "target_modules", "layers_to_transform")
HEAD = "base_model.model.classifier."
PEFT_PREFIX = "base_model.model."


class Classifier(torch.nn.Module):
    """A PEFT model, the mean of its last hidden states over the mask, and a linear head."""

    def __init__(self, model: torch.nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.model = model
        self.head = torch.nn.Linear(features, classes)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * mask).sum(1) / mask.sum(1))

    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The trained parameters by the names of their gradients."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix(PEFT_PREFIX).replace(".default.weight", ""), parameter
        for name, parameter in self.head.named_parameters():
            yield f"classifier.{name}", parameter


def main() -> None:
    folder, destination, started = worker_arguments()
    job = Job.read(folder)
    record = Recorder("PEFT", job, started)
    options = worker_options()
    torch.set_num_threads(job.settings.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    classifier = build(job, options)
    rate = options.get("learning_rate", job.settings.learning_rate)
    optimizer = torch.optim.AdamW([p for _, p in classifier.trainable()], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / job.total_steps))
    snapshots: list[list[torch.Tensor]] = []
    batches = job.batches()
    for step, rows in enumerate(batches):
        record.begin_step()
        optimizer.zero_grad()
        loss = loss_of(classifier, job.train, rows)
        loss.backward()
        optimizer.step()
        schedule.step()
        value = loss.item()
        record.end_step(value)
        if step == 0 and not options.get("full"):
            record.keep_gradients(INITIAL, gradients(classifier))
        if job.ends_epoch(step):
            snapshots.append([p.detach().clone() for _, p in classifier.trainable()])
        record.next_turn()
    record.end_training()
    if not options.get("full"):
        load_adapter(classifier, folder / PROBE)
        optimizer.zero_grad()
        loss_of(classifier, job.train, batches[0]).backward()
        record.keep_gradients(PROBE, gradients(classifier))
    accuracies = [accuracy(classifier, snapshot, job) for snapshot in snapshots]
    modules = {"peft": peft, "torch": torch, "transformers": transformers, "numpy": np}
    versions = {name: str(module.__version__) for name, module in modules.items()}
    record.write(destination, accuracies, versions | {"python": platform.python_version()})


def build(job: Job, options: Mapping[str, Any]) -> Classifier:
    """The base without dropout, LoRA at the initial adapter's points, a head of its size, its values."""
    base = transformers.AutoModel.from_pretrained(
        job.settings.model,
        dtype=torch.float32,
        local_files_only=True,
        attn_implementation=options.get("attention", "sdpa"),
    )
    saved = json.loads((job.folder / INITIAL / CONFIG_FILE).read_text(encoding="utf-8"))
    classes, features = load_file(job.folder / INITIAL / TENSORS_FILE)[f"{HEAD}weight"].shape
    if options.get("full"):
        classifier = Classifier(base, features, classes)
        load_head(classifier, job.folder / INITIAL)
    else:
        chosen = {key: saved[key] for key in CONFIG_KEYS if saved.get(key) is not None}
        classifier = Classifier(peft.get_peft_model(base, peft.LoraConfig(**chosen)), features, classes)
        load_adapter(classifier, job.folder / INITIAL)
    classifier.eval()
    if options.get("compile"):
        classifier.compile(dynamic=True)
    return classifier


def load_head(classifier: Classifier, folder: Path) -> None:
    """The initial values of the head alone."""
    tensors = load_file(folder / TENSORS_FILE)
    with torch.no_grad():
        for name, parameter in classifier.head.named_parameters():
            parameter.copy_(tensors[f"{HEAD}{name}"])


def load_adapter(classifier: Classifier, folder: Path) -> None:
    """Put an adapter's values in place; each tensor must find its parameter and each parameter its tensor."""
    tensors = load_file(folder / TENSORS_FILE)
    parameters = dict(classifier.trainable())
    values = {
        key.removeprefix(PEFT_PREFIX).replace("lora_A.weight", "lora_A").replace("lora_B.weight", "lora_B"): value
        for key, value in tensors.items()
    }
    if values.keys() != parameters.keys():
        raise SystemExit(f"{folder}: not the adapter of this model: {sorted(values.keys() ^ parameters.keys())}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def as_torch(texts: Texts, rows: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in texts.feeds(rows).items()}


def loss_of(classifier: Classifier, texts: Texts, rows: NDArray[np.int64]) -> torch.Tensor:
    logits = classifier(**as_torch(texts, rows))
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(texts.labels[rows]))


def gradients(classifier: Classifier) -> dict[str, NDArray[np.float32]]:
    return {name: p.grad.numpy() for name, p in classifier.trainable() if p.grad is not None}


def accuracy(classifier: Classifier, snapshot: list[torch.Tensor], job: Job) -> float:
    """Accuracy on the test texts with these parameters."""
    hits = 0
    with torch.no_grad():
        for (_, parameter), value in zip(classifier.trainable(), snapshot, strict=True):
            parameter.copy_(value)
        for rows in job.test.evaluation_batches():
            predicted = classifier(**as_torch(job.test, rows)).argmax(1).numpy()
            hits += int((predicted == job.test.labels[rows]).sum())
    return hits / len(job.test)


if __name__ == "__main__":
    main()
