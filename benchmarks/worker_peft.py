"""The same training run by PEFT on PyTorch, set up as its documentation does.

Options: `attention` ("sdpa", "eager"), `compile` (torch.compile with dynamic shapes), `full` (no adapters: every weight
is trained), `learning_rate` (else the job's), `max_grad_norm` (0: no clipping), `last_epoch_alone` (that one is
evaluated).
"""

from __future__ import annotations

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

TENSORS_FILE = "adapter_model.safetensors"
HEAD = "classifier."
PEFT_PREFIX = "base_model.model."


class Classifier(torch.nn.Module):
    """A PEFT model, the mean of its last hidden states over the mask and virtual tokens, and a linear head."""

    def __init__(self, model: torch.nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.model = model
        self.head = torch.nn.Linear(features, classes)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        virtual = hidden.shape[1] - mask.shape[1]  # tokens before the text
        mask = torch.nn.functional.pad(mask, (0, 0, virtual, 0), value=1.0)
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
    compares = (job.folder / PROBE).is_dir() and not options.get("full")
    for step, rows in enumerate(batches):
        record.begin_step()
        optimizer.zero_grad()
        loss = loss_of(classifier, job.train, rows)
        loss.backward()
        if largest := options.get("max_grad_norm"):
            torch.nn.utils.clip_grad_norm_([p for _, p in classifier.trainable()], largest)
        optimizer.step()
        schedule.step()
        value = loss.item()
        record.end_step(value)
        if step == 0 and compares:
            record.keep_gradients(INITIAL, gradients(classifier))
        if job.ends_epoch(step):
            snapshots.append([p.detach().clone() for _, p in classifier.trainable()])
        record.next_turn()
    record.end_training()
    if compares:
        load_adapter(classifier, folder / PROBE)
        optimizer.zero_grad()
        loss_of(classifier, job.train, batches[0]).backward()
        record.keep_gradients(PROBE, gradients(classifier))
    evaluated = snapshots[-1:] if options.get("last_epoch_alone") else snapshots
    accuracies = [accuracy(classifier, snapshot, job) for snapshot in evaluated]
    modules = {"peft": peft, "torch": torch, "transformers": transformers, "numpy": np}
    versions = {name: str(module.__version__) for name, module in modules.items()}
    record.write(destination, accuracies, versions | {"python": platform.python_version()})


def build(job: Job, options: Mapping[str, Any]) -> Classifier:
    """The base without dropout, the initial adapter's method at its points, a head of its size, its values."""
    base = transformers.AutoModel.from_pretrained(
        job.settings.model,
        dtype=torch.float32,
        local_files_only=True,
        attn_implementation=options.get("attention", "sdpa"),
    )
    initial = job.folder / INITIAL
    classes, features = read_head(initial)["weight"].shape
    if options.get("full"):
        classifier = Classifier(base, features, classes)
        load_head(classifier, initial)
    else:
        config: Any = peft.PeftConfig.from_pretrained(str(initial))
        config.task_type, config.inference_mode, config.modules_to_save = "FEATURE_EXTRACTION", False, None
        classifier = Classifier(peft.get_peft_model(base, config), features, classes)
        load_adapter(classifier, initial)
    classifier.eval()
    if options.get("compile"):
        classifier.compile(dynamic=True)
    return classifier


def read_head(folder: Path) -> dict[str, torch.Tensor]:
    """The weight and the bias of the head, whose names have a root or none, by the method."""
    return {name.split(HEAD)[1]: x for name, x in load_file(folder / TENSORS_FILE).items() if HEAD in name}


def load_head(classifier: Classifier, folder: Path) -> None:
    """The values of the head alone."""
    tensors = read_head(folder)
    with torch.no_grad():
        for name, parameter in classifier.head.named_parameters():
            parameter.copy_(tensors[name])


def load_adapter(classifier: Classifier, folder: Path) -> None:
    """Put an adapter's values in place; each tensor must find its parameter and each parameter its tensor."""
    load_head(classifier, folder)
    tensors = {name: x for name, x in load_file(folder / TENSORS_FILE).items() if HEAD not in name}
    expected = peft.get_peft_model_state_dict(classifier.model)
    if tensors.keys() != expected.keys():
        raise SystemExit(f"{folder}: not the adapter of this model: {sorted(tensors.keys() ^ expected.keys())}")
    peft.set_peft_model_state_dict(classifier.model, tensors)


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
