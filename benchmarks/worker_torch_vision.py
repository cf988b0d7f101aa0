"""A vision network with LoRA on its convolutions, trained by PEFT on PyTorch, BatchNorm in evaluation mode.

The base comes from the recipe's own `network.py`. Options: `channels_last` lays images and kernels out so, `folded`
puts every BatchNorm into the convolution before it (then an adapter stands behind the norm: another place for B, at
the same cost).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
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
from edgelora_tools.recipes import load_recipe, network


class Classifier(nn.Module):
    """A PEFT model whose base tells `pooled` features, and a linear head."""

    def __init__(self, model: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(features, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.model(image)["pooled"])

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by the names of their gradients."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name.removeprefix(PEFT_PREFIX).replace(".default.weight", ""), parameter
        for name, parameter in self.head.named_parameters():
            yield f"classifier.{name}", parameter


def main() -> None:
    folder, destination, started = worker_arguments()
    job, options = Job.read(folder), worker_options()
    record = Recorder("PEFT", job, started)
    torch.set_num_threads(job.settings.threads)
    classifier, layout = build(job, options)
    optimizer = torch.optim.AdamW([p for _, p in classifier.trainable()], job.settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / job.total_steps))
    batches = job.batches()
    for step, rows in enumerate(batches):
        record.begin_step()
        optimizer.zero_grad()
        loss = loss_of(classifier, job, rows, layout)
        loss.backward()
        optimizer.step()
        schedule.step()
        value = loss.item()
        record.end_step(value)
        if step == 0:
            record.keep_gradients(INITIAL, gradients(classifier))
        record.next_turn()
    record.end_training()
    load_adapter(classifier, job.folder / PROBE)
    optimizer.zero_grad()
    loss_of(classifier, job, batches[0], layout).backward()
    record.keep_gradients(PROBE, gradients(classifier))
    modules = {"peft": peft, "torch": torch, "numpy": np}
    versions = {name: str(module.__version__) for name, module in modules.items()}
    record.write(destination, [], versions | {"python": platform.python_version()})


def build(job: Job, options: Mapping[str, Any]) -> tuple[Classifier, torch.memory_format]:
    """The base in evaluation mode with the initial adapter, a head of its size, and the layout of images."""
    recipe = load_recipe(Path(job.settings.model).name)
    assert recipe.factory is not None
    base = getattr(network(recipe.id), recipe.factory)(Path(job.settings.model))[0].eval()
    if options.get("folded"):
        fold(base)
    layout = torch.channels_last if options.get("channels_last") else torch.contiguous_format
    base = base.to(memory_format=layout)
    classes, features = read_head(job.folder / INITIAL)["weight"].shape
    config: Any = peft.PeftConfig.from_pretrained(str(job.folder / INITIAL))
    config.task_type, config.inference_mode, config.modules_to_save = None, False, None
    classifier = Classifier(peft.get_peft_model(base, config), features, classes)
    load_adapter(classifier, job.folder / INITIAL)
    return classifier.eval(), layout


def fold(module: nn.Module) -> None:
    """Every BatchNorm that follows a convolution in a Sequential goes into it."""
    for parent in module.modules():
        if isinstance(parent, nn.Sequential):
            for name, following in zip(list(parent._modules), list(parent._modules)[1:], strict=False):
                first, norm = parent._modules[name], parent._modules[following]
                if isinstance(first, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    parent._modules[name] = fuse_conv_bn_eval(first, norm)
                    parent._modules[following] = nn.Identity()


def load_adapter(classifier: Classifier, folder: Path) -> None:
    """Put an adapter's values in place, and the head's."""
    with torch.no_grad():
        for name, parameter in classifier.head.named_parameters():
            parameter.copy_(read_head(folder)[name])
    tensors = {name: x for name, x in load_file(folder / TENSORS_FILE).items() if "classifier." not in name}
    peft.set_peft_model_state_dict(classifier.model, tensors)


def loss_of(classifier: Classifier, job: Job, rows: NDArray[np.int64], layout: torch.memory_format) -> torch.Tensor:
    assert isinstance(job.train, Images)
    image = torch.from_numpy(job.train.pixels[rows]).to(memory_format=layout)
    return nn.functional.cross_entropy(classifier(image), torch.from_numpy(job.train.labels[rows]))


def gradients(classifier: Classifier) -> dict[str, NDArray[np.float32]]:
    """By name, in memory as our own are: kernels as they are, the head's as it is."""
    return {name: p.grad.contiguous().numpy() for name, p in classifier.trainable() if p.grad is not None}


if __name__ == "__main__":
    main()
