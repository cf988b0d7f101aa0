"""A source that is a torch module: exported once, by the dynamo exporter or by TorchScript's."""

from __future__ import annotations

import importlib
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgelora.errors import ConversionError
from edgelora_tools.normalize import onnx_errors
from edgelora_tools.sources.base import Source

if TYPE_CHECKING:
    import torch

EXPORTERS = ("dynamo", "torchscript")
OPSET = {"dynamo": 21, "torchscript": 18}


@dataclass(frozen=True)
class Original:
    """A torch module as a function of arrays: input types and output names are those of the exported graph."""

    module: torch.nn.Module
    dtypes: Mapping[str, torch.dtype]
    names: tuple[str, ...]
    extra: Mapping[str, Any]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """The module's outputs by name."""
        import torch

        given = {name: torch.from_numpy(x).to(self.dtypes[name]) for name, x in feeds.items()}
        return dict(zip(self.names, flat_outputs(self.module(**given, **self.extra)), strict=False))


def factory_source(spec: str, exporter: str = "dynamo") -> Source:
    """`module:factory`, a callable returning a module and its sample inputs (a dict by argument name).

    Dimension 0 of every input is dynamic, and dimension 1 of integer and boolean inputs (token
    sequences). A factory may return a third value, a dict as torch.export's `dynamic_shapes`, instead.

    Raises:
        ConversionError: no such module or factory, or torch cannot export the module.
    """
    require_torch()
    module_name, _, name = spec.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        with onnx_errors(f"{spec}: SOURCE is module:factory, importable from here"):
            factory = getattr(importlib.import_module(module_name), name)
        return made_source(factory, spec, name, exporter)
    finally:
        sys.path.pop(0)


def made_source(factory: Any, what: str, name: str, exporter: str, *arguments: Any) -> Source:
    """What a factory makes of `arguments`, as a source; `what` tells errors which factory it is.

    Where the module returns a plain dict of tensors, its keys name the outputs.

    Raises:
        ConversionError: it is none, or fails, or torch cannot export the module.
    """
    if not callable(factory):
        raise ConversionError(f"{what} is not callable")
    with onnx_errors(f"{what} failed"):
        made = factory(*arguments)
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[1], Mapping):
        raise ConversionError(f"{what}: must return (module, sample inputs as a dict[, dynamic shapes])")
    module, inputs = made[:2]
    with onnx_errors(f"{what}: the module does not run on its sample inputs"):
        outputs = _names_of_outputs(module.eval(), inputs)
    dynamic = made[2] if len(made) == 3 else None
    return module_source(module, inputs, name=name, exporter=exporter, dynamic=dynamic, outputs=outputs)


def _names_of_outputs(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[str] | None:
    import torch

    with torch.no_grad():
        made = module(**inputs)
    named = type(made) is dict and all(isinstance(t, torch.Tensor) for t in made.values())
    return [str(key) for key in made] if named else None


def module_source(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    name: str,
    exporter: str = "dynamo",
    dynamic: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
    facts: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
) -> Source:
    """Export `module` in evaluation mode, without caches. `extra` are constant keyword arguments (use_cache=False).

    Raises:
        ConversionError: unknown exporter, or the exporter fails; its first line is shown.
    """
    require_torch()
    if exporter not in EXPORTERS:
        raise ConversionError(f"unknown exporter {exporter!r}; one of {', '.join(EXPORTERS)}")
    module = module.eval()
    _configure(module)
    axes = dict(dynamic) if dynamic is not None else _default_axes(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        export = _export_dynamo if exporter == "dynamo" else _export_torchscript
        try:
            model = export(module, dict(inputs), axes, dict(extra or {}), outputs)
            _name_axes(model, axes)
            _tell_outputs_apart(model)
        except Exception as error:
            raise ConversionError(
                f"{name}: the {exporter} exporter failed; try --exporter ({root_of(error)})"
            ) from error
    names = tuple(str(v.name) for v in model.graph.outputs)
    original = Original(module, {k: x.dtype for k, x in inputs.items()}, names, dict(extra or {}))

    def run(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        import torch

        with torch.no_grad():
            return {name: t.numpy() for name, t in original(feeds).items()}

    return Source("torch", name, model, run, files or {}, facts or {}, original)


def _configure(module: torch.nn.Module) -> None:
    """What transformers' defaults do that no exporter takes.

    Decoders return the keys and values of all tokens; experts are computed by a grouped product, where
    `batched_mm`, the same in other words, gathers the experts of each token.
    """
    for part in module.modules():
        config: Any = getattr(part, "config", None)
        if getattr(config, "use_cache", None) is True:
            config.use_cache = False
        if getattr(config, "_experts_implementation", None) == "grouped_mm":
            config._experts_implementation = "batched_mm"


def root_of(error: BaseException) -> str:
    """The first line of what an exporter's exception came from: its own message tells the stage alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def require_torch() -> None:
    """Raise ConversionError with the remedy unless torch is installed."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ConversionError('this source needs PyTorch: pip install "edgelora[torch]"') from error


def flat_outputs(made: Any) -> list[torch.Tensor]:
    """The tensors of a module's result, in the exporters' order."""
    if isinstance(made, Mapping):
        made = list(made.values())
    if isinstance(made, list | tuple):
        return [t for part in made for t in flat_outputs(part)]
    return [] if made is None else [made]


def _default_axes(inputs: Mapping[str, torch.Tensor]) -> dict[str, dict[int, str]]:
    axes: dict[str, dict[int, str]] = {}
    for name, x in inputs.items():
        axes[name] = {0: "batch"}
        if not x.is_floating_point() and x.ndim >= 2:
            axes[name][1] = "sequence"
    return axes


def _export_dynamo(
    module: torch.nn.Module,
    inputs: dict[str, Any],
    axes: Mapping[str, Any],
    extra: dict[str, Any],
    outputs: Sequence[str] | None,
) -> ir.Model:
    import torch

    named = {
        d: torch.export.Dim(d, min=1, max=65536)
        for x in axes.values()
        for d in (x or {}).values()
        if isinstance(d, str)
    }
    shapes: dict[str, Any] = {
        name: {axis: named.get(d, d) for axis, d in (axes.get(name) or {}).items()} for name in inputs
    }
    shapes |= dict.fromkeys(extra, None)
    program = torch.onnx.export(
        module,
        args=(),
        kwargs=inputs | extra,
        dynamic_shapes=shapes,
        opset_version=OPSET["dynamo"],
        dynamo=True,
        optimize=False,
        verbose=False,
        output_names=list(outputs) if outputs else None,
    )
    assert program is not None
    model = program.model
    forget_tensors_of_torch(model)
    return model


def _name_axes(model: ir.Model, axes: Mapping[str, Any]) -> None:
    """Dynamic dimensions keep the names that were asked for; torch.export renames those it unifies."""
    for value in model.graph.inputs:
        names = axes.get(str(value.name)) or {}
        assert value.shape is not None
        value.shape = ir.Shape([names[i] if isinstance(names.get(i), str) else d for i, d in enumerate(value.shape)])


def _tell_outputs_apart(model: ir.Model) -> None:
    """A tensor that the module returns more than once has a name for each time."""
    outputs = model.graph.outputs
    taken = {str(value.name) for value in outputs}
    for position, value in enumerate(list(outputs)):
        if value in outputs[:position]:
            node, n = ir.node("Identity", [value]), 2
            while f"{value.name}_{n}" in taken:
                n += 1
            again = node.outputs[0]
            again.name, again.shape, again.type = f"{value.name}_{n}", value.shape, value.type
            taken.add(str(again.name))
            model.graph.append(node)
            outputs[position] = again


def forget_tensors_of_torch(model: ir.Model) -> None:
    """Weights as plain numpy tensors, detached from the module."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = ir.tensor(np.asarray(value.const_value.numpy(), order="C"), name=value.name)


def _export_torchscript(
    module: torch.nn.Module,
    inputs: dict[str, Any],
    axes: Mapping[str, Any],
    extra: dict[str, Any],
    outputs: Sequence[str] | None,
) -> ir.Model:
    import onnx
    import torch

    names = [n for n in inspect.signature(module.forward).parameters if n in inputs]

    class Traced(torch.nn.Module):
        """The module with its inputs in order and its result as a flat tuple."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(flat_outputs(self.module(**dict(zip(names, args, strict=True)), **extra)))

    traced = Traced().eval()  # the exporter puts back the mode that it finds, also in the module inside
    with torch.no_grad():
        count = len(traced(*(inputs[n] for n in names)))
    labels = list(outputs) if outputs and len(outputs) == count else [f"output_{i}" for i in range(count)]
    buffer = io.BytesIO()
    torch.onnx.export(
        traced,
        tuple(inputs[n] for n in names),
        buffer,  # pyright: ignore[reportArgumentType]
        input_names=names,
        output_names=labels,
        dynamic_axes={
            n: {k: v if isinstance(v, str) else f"{n}_{k}" for k, v in (axes.get(n) or {}).items()} for n in names
        },
        opset_version=OPSET["torchscript"],
        training=torch.onnx.TrainingMode.PRESERVE,  # else it folds a BatchNorm into its convolution
        dynamo=False,
        verbose=False,
    )
    model = ir.from_proto(onnx.load_from_string(buffer.getvalue()))
    _drop_wrapper_scope(model)
    return model


def _drop_wrapper_scope(model: ir.Model) -> None:
    """Ids are the paths of the user's module, not of the wrapper around it."""
    for node in model.graph.all_nodes():
        if node.name and node.name.startswith("/module/"):
            node.name = node.name.removeprefix("/module")
    for value in list(model.graph.initializers.values()):
        if value.name and value.name.startswith("module."):
            model.graph.initializers.pop(value.name)
            value.name = value.name.removeprefix("module.")
            model.graph.register_initializer(value)
