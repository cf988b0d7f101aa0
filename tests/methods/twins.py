"""What a method is held against: PEFT's own, or the method written in torch where PEFT has none."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

CONFIG, TENSORS, ROOT = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


class Twin(Protocol):
    """A method in torch. A model is a base with an adapter, whose parameters alone require gradients; it is called as
    the base is. The base that is given may be changed.
    """

    def attach(self, base: Any) -> Any:
        """The base with a fresh adapter."""
        ...

    def load(self, base: Any, folder: Path, trainable: bool = False) -> Any:
        """The base with the adapter of a folder."""
        ...

    def save(self, model: Any, folder: Path) -> None:
        """Write the adapter's folder."""
        ...

    def inside(self, model: Any, path: str) -> Any:
        """The base at this path of the model, with the adapter."""
        ...

    def merged(self, model: Any) -> Any | None:
        """The base with the adapter in its weights; None if the method has no such thing."""
        ...


def moved(model: Any, seed: int = 0, loudness: float = 0.2) -> Any:
    """The model, every parameter of its adapter moved away from its first value."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += loudness * torch.randn(parameter.shape)
    return model.eval()


@dataclass(frozen=True)
class InPeft:
    """PEFT's method, by its settings."""

    config: Any

    def attach(self, base: Any) -> Any:
        return get_peft_model(base, self.config)

    def load(self, base: Any, folder: Path, trainable: bool = False) -> Any:
        return PeftModel.from_pretrained(base, str(folder), is_trainable=trainable).eval()

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(str(folder))

    def inside(self, model: Any, path: str) -> Any:
        return model.base_model.model.get_submodule(path)

    def merged(self, model: Any) -> Any:
        return model.merge_and_unload()


class BeforeTheText(InPeft):
    """PEFT's prompt learning: tokens before the text, which the model that holds the base is given."""

    def load(self, base: Any, folder: Path, trainable: bool = False) -> Any:
        model = super().load(base, folder)  # which PEFT would not make trainable
        model.prompt_encoder.requires_grad_(trainable)
        return model

    def inside(self, model: Any, path: str) -> Any:
        def hidden(**feeds: torch.Tensor) -> Any:
            return SimpleNamespace(last_hidden_state=model(**feeds, output_hidden_states=True).hidden_states[-1])

        return hidden

    def merged(self, model: Any) -> None:
        return None


class Joined(torch.nn.Module):
    """A base and an adapter's parameters by their names, module and all."""

    def __init__(self, base: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.adapter = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
        for name, parameter in self.adapter.items():
            self.register_parameter(name.replace(".", "/"), parameter)

    def forward(self, **feeds: torch.Tensor) -> Any:
        return self.base(**feeds)


class InTorch(ABC):
    """A method that changes the output of each module that it joins; in a file it has PEFT's layout.

    A module's tensors go by what stands behind its name in the file. `settings` are those of the file beside
    `target_modules`.
    """

    def __init__(self, targets: Sequence[str], **settings: Any) -> None:
        self.targets, self.settings = targets, settings

    @abstractmethod
    def tensors(self, module: Any) -> Mapping[str, torch.Tensor]:
        """Fresh tensors at a module."""

    @abstractmethod
    def output(self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What the module gives in the place of y, which it makes of x."""

    def merge(self, tensors: Mapping[str, torch.Tensor], module: Any) -> bool:
        """Put a module's tensors into its weights; False, as here, if that cannot be."""
        del tensors, module
        return False

    def attach(self, base: Any) -> Any:
        chosen = {
            name: module
            for name, module in base.named_modules()
            if any(name == target or name.endswith(f".{target}") for target in self.targets)
        }
        return self._join(base, {f"{n}.{key}": t for n, m in chosen.items() for key, t in self.tensors(m).items()})

    def load(self, base: Any, folder: Path, trainable: bool = False) -> Any:
        del trainable
        body = json.loads((folder / CONFIG).read_text())
        assert {key: body[key] for key in self.settings} == self.settings
        tensors = load_file(folder / TENSORS)
        assert all(key.startswith(ROOT) for key in tensors)
        return self._join(base, {key.removeprefix(ROOT): tensor for key, tensor in tensors.items()}).eval()

    def save(self, model: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        body = {"target_modules": list(self.targets), **self.settings}
        (folder / CONFIG).write_text(json.dumps(body))
        save_file({f"{ROOT}{name}": p.detach().contiguous() for name, p in model.adapter.items()}, folder / TENSORS)

    def inside(self, model: Any, path: str) -> Any:
        return model.base.get_submodule(path)

    def merged(self, model: Any) -> Any | None:
        parts = _by_module(model.base, model.adapter)
        return model.base if all(self.merge(tensors, module) for module, tensors in parts) else None

    def _join(self, base: Any, tensors: Mapping[str, torch.Tensor]) -> Joined:
        model = Joined(base, tensors)
        for module, parts in _by_module(base, model.adapter):
            module.register_forward_hook(lambda _, x, y, parts=parts: self.output(parts, x[0], y))
        return model


class Whole(InTorch):
    """Linear modules that are trained whole."""

    def __init__(self, targets: Sequence[str]) -> None:
        super().__init__(targets, peft_type="FULL")

    def tensors(self, module: Any) -> Mapping[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def output(self, tensors: Mapping[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, tensors["weight"], tensors.get("bias"))

    def merge(self, tensors: Mapping[str, torch.Tensor], module: Any) -> bool:
        for name, parameter in module.named_parameters():
            parameter.data = tensors[name].detach().clone()
        return True


def _by_module(base: Any, tensors: Mapping[str, torch.Tensor]) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    """Each module that has some of the tensors, and these by what stands behind its name."""
    found: list[tuple[Any, dict[str, torch.Tensor]]] = []
    for name, module in base.named_modules():
        if name and not list(module.children()) and (own := [n for n in tensors if n.startswith(f"{name}.")]):
            found.append((module, {n.removeprefix(f"{name}."): tensors[n] for n in own}))
    return found
