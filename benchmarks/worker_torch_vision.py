"""A vision network with LoRA on its convolutions, trained by PEFT on PyTorch, BatchNorm in evaluation mode.

Options: `network`, the file with the base, and `factory`, the function there that makes it of the job's folder of
weights; `channels_last` lays images and kernels out so, `folded` puts every BatchNorm into the convolution before it
(then an adapter stands behind the norm: another place for B, at the same cost).
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.job import INITIAL, PROBE, Images, Job, Recorder, worker_arguments, worker_options
from benchmarks.worker_peft import PEFT_PREFIX, TENSORS_FILE, read_head


class Adapted(nn.Module):
    """A PEFT model, with a linear head on the base's `pooled` features where `head` says its shape."""

    def __init__(self, model: nn.Module, head: tuple[int, int] | None) -> None:
        super().__init__()
        self.model = model
        self.head = None if head is None else nn.Linear(head[1], head[0])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        made = self.model(image)
        return made if self.head is None else self.head(made["pooled"])

    def of_head(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The head's parameters by name."""
        return iter(()) if self.head is None else self.head.named_parameters()

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by the names of their gradients."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix(PEFT_PREFIX).replace(".default.weight", ""), parameter
        for name, parameter in self.of_head():
            yield f"classifier.{name}", parameter


def main() -> None:
    folder, destination, started = worker_arguments()
    job, options = Job.read(folder), worker_options()
    record = Recorder("PEFT", job, started)
    torch.set_num_threads(job.settings.threads)
    adapted, layout = build(job, options)
    loss_of = loss_function(job)
    optimizer = torch.optim.AdamW([p for _, p in adapted.trainable()], job.settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / job.total_steps))

    def made(rows: NDArray[np.int64]) -> torch.Tensor:
        return adapted(torch.from_numpy(job.train.pixels[rows]).to(memory_format=layout))

    batches = job.batches()
    for step, rows in enumerate(batches):
        record.begin_step()
        optimizer.zero_grad()
        value = loss_of(made(rows), rows)
        optimizer.step()
        schedule.step()
        record.end_step(value)
        if step == 0:
            record.keep_gradients(INITIAL, gradients(adapted))
        record.next_turn()
    record.end_training()
    load_adapter(adapted, job.folder / PROBE)
    optimizer.zero_grad()
    loss_of(made(batches[0]), batches[0])
    record.keep_gradients(PROBE, gradients(adapted))
    modules = {"peft": peft, "torch": torch, "numpy": np}
    versions = {name: str(module.__version__) for name, module in modules.items()}
    record.write(destination, [], versions | {"python": platform.python_version()})


def build(job: Job, options: Mapping[str, Any]) -> tuple[Adapted, torch.memory_format]:
    """The base in evaluation mode with the initial adapter, a head of its size if it has one, and images' layout."""
    spec = importlib.util.spec_from_file_location("network", options["network"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base = getattr(module, options["factory"])(Path(job.settings.model))[0].eval()
    if options.get("folded"):
        fold(base)
    layout = torch.channels_last if options.get("channels_last") else torch.contiguous_format
    base = base.to(memory_format=layout)
    head = read_head(job.folder / INITIAL)
    config: Any = peft.PeftConfig.from_pretrained(str(job.folder / INITIAL))
    config.task_type, config.inference_mode, config.modules_to_save = None, False, None
    weight = head.get("weight")
    adapted = Adapted(peft.get_peft_model(base, config), None if weight is None else (len(weight), weight.shape[1]))
    load_adapter(adapted, job.folder / INITIAL)
    return adapted.eval(), layout


Loss = Callable[[torch.Tensor, NDArray[np.int64]], float]


def loss_function(job: Job) -> Loss:
    """The mean loss of a batch from what the network makes of it, whose gradients it leaves."""
    images = job.train
    assert isinstance(images, Images)
    if images.boxes is not None:
        return _of_boxes(images)

    def of_classes(logits: torch.Tensor, rows: NDArray[np.int64]) -> float:
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(images.labels[rows]))
        loss.backward()
        return loss.item()

    return of_classes


def _of_boxes(images: Images) -> Loss:
    from benchmarks.boxes import Boxes  # the package is not part of the other cases' memory

    assert images.boxes is not None
    height, width = images.pixels.shape[2:]
    boxes = Boxes(images.boxes, images.labels, (height, width))

    def of_boxes(maps: torch.Tensor, rows: NDArray[np.int64]) -> float:
        loss, slope = boxes.loss(maps.detach().numpy(), rows)
        maps.backward(torch.from_numpy(slope / np.float32(len(rows))))
        return loss / len(rows)

    return of_boxes


def fold(module: nn.Module) -> None:
    """Every BatchNorm that follows a convolution in a Sequential goes into it."""
    for parent in module.modules():
        if isinstance(parent, nn.Sequential):
            for name, following in zip(list(parent._modules), list(parent._modules)[1:], strict=False):
                first, norm = parent._modules[name], parent._modules[following]
                if isinstance(first, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    parent._modules[name] = fuse_conv_bn_eval(first, norm)
                    parent._modules[following] = nn.Identity()


def load_adapter(adapted: Adapted, folder: Path) -> None:
    """Put an adapter's values in place, and the head's."""
    with torch.no_grad():
        for name, parameter in adapted.of_head():
            parameter.copy_(read_head(folder)[name])
    tensors = {name: x for name, x in load_file(folder / TENSORS_FILE).items() if "classifier." not in name}
    peft.set_peft_model_state_dict(adapted.model, tensors)


def gradients(adapted: Adapted) -> dict[str, NDArray[np.float32]]:
    """By name, in memory as our own are: kernels as they are, the head's as it is."""
    return {name: p.grad.contiguous().numpy() for name, p in adapted.trainable() if p.grad is not None}


if __name__ == "__main__":
    main()
