"""The same training of a language model by PEFT on PyTorch.

Options: `attention` ("sdpa", "eager"), `checkpointing` (activations of a layer computed again in the backward pass).
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.job import INITIAL, PROBE, Job, Recorder, TokenRows, worker_arguments, worker_options
from benchmarks.worker_peft import PEFT_PREFIX, TENSORS_FILE


def main() -> None:
    folder, destination, started = worker_arguments()
    job, options = Job.read(folder), worker_options()
    record = Recorder("PEFT", job, started)
    torch.set_num_threads(job.settings.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = build(job, options.get("attention", "sdpa"), bool(options.get("checkpointing")))
    trained = {
        name.removeprefix(PEFT_PREFIX).replace(".default.weight", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    optimizer = torch.optim.AdamW(trained.values(), lr=job.settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / job.total_steps))

    def gradients() -> dict[str, NDArray[np.float32]]:
        return {name: p.grad.numpy() for name, p in trained.items() if p.grad is not None}

    batches = job.batches()
    for step, rows in enumerate(batches):
        record.begin_step()
        optimizer.zero_grad()
        loss = loss_of(model, job.train, rows)
        loss.backward()
        optimizer.step()
        schedule.step()
        record.end_step(loss.item())
        if step == 0:
            record.keep_gradients(INITIAL, gradients())
        record.next_turn()
    record.end_training()
    with torch.no_grad():
        held_out = [loss_of(model, job.test, rows).item() for rows in job.test.evaluation_batches()]
    load_adapter(model, job.folder / PROBE)
    optimizer.zero_grad()
    loss_of(model, job.train, batches[0]).backward()
    record.keep_gradients(PROBE, gradients())
    modules = {"peft": peft, "torch": torch, "transformers": transformers, "numpy": np}
    versions = {name: str(module.__version__) for name, module in modules.items()}
    further = {"held_out_loss": float(np.mean(held_out))}
    record.write(destination, [], versions | {"python": platform.python_version()}, further)


def build(job: Job, attention: str, checkpointing: bool) -> Any:
    """The base, the initial adapter at its points, its values."""
    base = transformers.AutoModelForCausalLM.from_pretrained(
        job.settings.model, dtype=torch.float32, local_files_only=True, attn_implementation=attention
    )
    base.config.use_cache = False
    config: Any = peft.PeftConfig.from_pretrained(str(job.folder / INITIAL))
    config.task_type, config.inference_mode = "CAUSAL_LM", False
    model = peft.get_peft_model(base, config)
    load_adapter(model, job.folder / INITIAL)
    model.train()  # checkpoints are taken while training alone; nothing in it drops anything
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def load_adapter(model: Any, folder: Path) -> None:
    """Put an adapter's values in place; each tensor must find its parameter and each parameter its tensor."""
    tensors = load_file(folder / TENSORS_FILE)
    expected = peft.get_peft_model_state_dict(model)
    if tensors.keys() != expected.keys():
        raise SystemExit(f"{folder}: not the adapter of this model: {sorted(tensors.keys() ^ expected.keys())[:8]}")
    peft.set_peft_model_state_dict(model, tensors)


def loss_of(model: Any, texts: TokenRows, rows: NDArray[np.int64]) -> torch.Tensor:
    """The mean over the tokens to foretell, as transformers computes it."""
    feeds = {name: torch.from_numpy(array) for name, array in texts.feeds(rows).items()}
    return model(**feeds, labels=torch.from_numpy(texts.labels[rows])).loss


if __name__ == "__main__":
    main()
