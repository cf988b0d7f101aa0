"""An adapter: named tensors and their settings."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgelora.config import AdapterConfig
from edgelora.errors import AdapterError, ConfigError
from edgelora.manifest import BIAS_OP, LORA_GRAPHS, InsertionPoint, Manifest
from edgelora.methods import PISSA, UNKNOWN, BaseValues, Floats, Method, as_lora, method_of, no_graphs, split_name
from edgelora.peft_names import named_modules

_SHOWN = 20


@dataclass(frozen=True)
class Adapter:
    """One person's adapter.

    `tensors` holds those of the method at each point (LoRA: `{point}.lora_A` and `{point}.lora_B`, not scaled), and the
    head's weight `[outputs, features]` and bias `[outputs]`, all float32. `labels` names the head's outputs, None where
    they have no names (regression) or there is no head. `training` is the record of the run that made it, empty
    if none did. Nothing is checked here; `validate` does.
    """

    config: AdapterConfig
    tensors: Mapping[str, Floats]
    base_digest: str
    task: str
    base_name: str = ""
    labels: tuple[str, ...] | None = None
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def points(self) -> tuple[str, ...]:
        """The ids of the insertion points that the adapter joins."""
        found = [point for point, suffix in map(split_name, self.tensors) if suffix in self.method.disk]
        return tuple(dict.fromkeys(found))

    @property
    def method(self) -> Method:
        """The adapter method."""
        return method_of(self.config)

    def joined(self, manifest: Manifest) -> tuple[InsertionPoint, ...]:
        """The places that the adapter joins, of those of its method's graphs, in the bundle's order.

        All of them, if it has no tensors of single places. Where it has a bias alone, the place is one of a bias (`op`
        "Bias").
        """
        places, ids, named = manifest.points_in(self.method.graphs), set(self.points), set(self.targets)
        if not self.method.disk:
            return places
        return tuple(p if p.id in named else replace(p, op=BIAS_OP) for p in places if p.id in ids)

    @property
    def targets(self) -> tuple[str, ...]:
        """The ids of `points` but for those where a bias of the base learns and nothing else."""
        return named_modules(self.method, self.tensors)

    @property
    def parameters(self) -> int:
        """The number of values that the adapter holds."""
        return sum(tensor.size for tensor in self.tensors.values())

    def with_tensors(self, tensors: Mapping[str, Floats]) -> Adapter:
        """The same adapter with other values."""
        return replace(self, tensors=dict(tensors))

    def saved(self) -> Adapter:
        """The adapter as its files have it: what PiSSA learned is LoRA."""
        if self.method is not PISSA:
            return self
        return replace(self, config=self.config.saved(), tensors=as_lora(self.tensors))

    def feeds(self, manifest: Manifest, base: BaseValues = UNKNOWN) -> dict[str, Floats]:
        """The graph inputs of the method's graphs: LoRA's B multiplied by the scale, the neutral value where a point
        has no adapter, the head if any.

        Methods that ask the base, as DoRA does, need `base=bundle`. All are contiguous float32. Dropout's factor is not
        in them: it is training's alone.
        """
        made = self.method.feeds(self.config, self.tensors, self.joined(manifest), base)
        made |= {name: self.tensors[name] for name in head_names(manifest) if name in self.tensors}
        feeds = absent_adapter(manifest, self.method.graphs, base, beside=made)
        return feeds | {name: np.ascontiguousarray(array, np.float32) for name, array in made.items()}

    def validate(self, manifest: Manifest) -> None:
        """Check that the adapter belongs to this base and fits it.

        Raises:
            AdapterError: another base; or unknown points, wrong shapes, NaN: all are named.
        """
        if self.base_digest != manifest.base_digest:
            raise AdapterError(
                f"the adapter was trained against another base model (digest {self.base_digest[:12] or 'unknown'}…, "
                f"this bundle's is {manifest.base_digest[:12]}…): open the bundle that it belongs to"
            )
        if manifest.graph_set(self.method.graphs) is None:
            raise AdapterError(no_graphs(self.method))
        joined = self.joined(manifest)
        try:
            problems = [
                *self._shape_problems(manifest, joined),
                *self._missing(joined),
                *self.method.problems(self.config, self.tensors, joined),
                *length_problems(manifest, self.config, joined),
                *self._head_problems(manifest),
                *(f"{n} is {t.dtype}, not float32" for n, t in self.tensors.items() if t.dtype != np.float32),
                *(f"{n} holds NaN or infinity" for n, t in self.tensors.items() if not np.isfinite(t).all()),
            ]
        except ConfigError as error:  # a pattern that takes too long
            raise AdapterError(f"the adapter's settings cannot be used: {error}") from error
        if problems:
            raise AdapterError("the adapter does not fit this bundle:\n" + listed(problems))

    def _shape_problems(self, manifest: Manifest, joined: Sequence[InsertionPoint]) -> list[str]:
        expected = self.method.shapes(self.config, joined)
        if manifest.head is not None:
            outputs = "outputs" if self.labels is None else manifest.head.leading + len(self.labels)
            expected |= {manifest.head.weight: (outputs, manifest.head.features), manifest.head.bias: (outputs,)}
        problems: list[str] = []
        for name, tensor in self.tensors.items():
            wanted = expected.get(name)
            if wanted is None:
                problems.append(f"{name} is no input of this bundle (`edgelora points` lists its points)")
            elif len(wanted) != tensor.ndim or any(
                isinstance(w, int) and w != s for w, s in zip(wanted, tensor.shape, strict=True)
            ):
                shape = ", ".join(map(str, wanted))
                problems.append(f"{name} has shape {list(tensor.shape)} where [{shape}] is expected")
        return problems

    def _missing(self, joined: Sequence[InsertionPoint]) -> list[str]:
        """Tensors that a point must have beside those that it has; shared ones."""
        problems = [f"there is no {name}" for name in self.method.shared if joined and name not in self.tensors]
        for point in joined:
            wanted = [split_name(name)[1] for name in self.method.shapes(self.config, [point]) if "." in name]
            absent = [suffix for suffix in wanted if f"{point.id}.{suffix}" not in self.tensors]
            present = [suffix for suffix in wanted if suffix not in absent]
            problems += [f"{point.id} has {present[0]} and no {suffix}" for suffix in absent]
        return problems

    def _head_problems(self, manifest: Manifest) -> list[str]:
        names = [name for name in head_names(manifest) if name in self.tensors]
        if not names:
            return []
        problems: list[str] = []
        if self.task != manifest.task:
            problems.append(f"its head was trained for {self.task}, this bundle is for {manifest.task}")
        missing = [name for name in head_names(manifest) if name not in self.tensors]
        problems += [f"{names[0]} is there and {name} is missing" for name in missing]
        if len({self.tensors[name].shape[:1] for name in names}) > 1:
            rows = " and ".join(f"{name} {list(self.tensors[name].shape)}" for name in names)
            problems.append(f"the head's tensors have different numbers of outputs: {rows}")
        return problems


def absent_adapter(
    manifest: Manifest, graphs: str = LORA_GRAPHS, base: BaseValues = UNKNOWN, beside: Container[str] = ()
) -> dict[str, Floats]:
    """The base model's feeds in a set of graphs: at every point the value that changes nothing (LoRA: rank 0).

    Those of `beside` are left out. Sets that take the base's own values need `base=bundle`.
    """
    found = manifest.graph_set(graphs)
    inputs = [] if found is None else [x for x in found.inputs if x.name not in beside]
    own = base.values([x.name for x in inputs if x.neutral is None])
    return {
        x.name: own[x.name]
        if x.neutral is None
        else np.full([d if isinstance(d, int) else 0 for d in x.shape], x.neutral, np.float32)
        for x in inputs
    }


def head_names(manifest: Manifest) -> tuple[str, ...]:
    """The names of the head's tensors, none if the task has no head."""
    return () if manifest.head is None else (manifest.head.weight, manifest.head.bias)


def length_problems(manifest: Manifest, config: AdapterConfig, points: Sequence[InsertionPoint]) -> list[str]:
    """Whether virtual tokens and the longest text are more than the model has positions for (a place's inputs)."""
    if not config.virtual_tokens or not points:
        return []
    longest, most = int(manifest.preprocessing.get("max_length", 1)), min(point.in_features for point in points)
    if config.virtual_tokens + longest <= most:
        return []
    return [
        f"{config.virtual_tokens} virtual tokens and {longest} of a text are more than the model's {most} positions: "
        f"take fewer, or convert the model with --max-length {max(most - config.virtual_tokens, 1)}"
    ]


def listed(problems: Sequence[str]) -> str:
    """Problems for a message, a line each, at most 20."""
    more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "\n".join([*(f"  {problem}" for problem in problems[:_SHOWN]), *more])
