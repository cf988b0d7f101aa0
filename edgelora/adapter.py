"""An adapter: named tensors and their settings, in PEFT's layout on disk.

Which tensors there are, and how they lie in memory and on disk, is the method's (edgelora/methods/).
`docs/adapter-format.md` specifies the files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
from safetensors.numpy import save

from edgelora.config import AdapterConfig, LoraConfig
from edgelora.errors import AdapterError, ConfigError
from edgelora.files import write_atomic
from edgelora.manifest import BIAS_OP, LORA_GRAPHS, InsertionPoint, Manifest
from edgelora.methods import (
    LORA,
    PISSA,
    UNKNOWN,
    BaseValues,
    Floats,
    Method,
    as_lora,
    beginnings,
    config_from_peft,
    method_of,
    no_graphs,
    split_name,
)
from edgelora.peft_names import named_inside, named_modules, placed, what_is
from edgelora.targets import select_points

CONFIG_FILE, TENSORS_FILE, RECORD_FILE = "adapter_config.json", "adapter_model.safetensors", "edgelora.json"
FORMAT, FORMAT_VERSION = "edgelora-adapter", (1, 1)
_ROOT, _PREFIX = "base_model.", "base_model.model."
_TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "sentence-embedding": "FEATURE_EXTRACTION",
    "feature-extraction": "FEATURE_EXTRACTION",
}
_PICKLE = "adapter_model.bin"
_LIMITS = {CONFIG_FILE: 2 << 20, TENSORS_FILE: 2 << 30, RECORD_FILE: 2 << 20}
_HEADER_LIMIT = 8 << 20
_SHOWN = 20
_MOST_AXES = 5


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
                *_length_problems(manifest, self.config, joined),
                *self._head_problems(manifest),
                *(f"{n} is {t.dtype}, not float32" for n, t in self.tensors.items() if t.dtype != np.float32),
                *(f"{n} holds NaN or infinity" for n, t in self.tensors.items() if not np.isfinite(t).all()),
            ]
        except ConfigError as error:  # a pattern that takes too long
            raise AdapterError(f"the adapter's settings cannot be used: {error}") from error
        if problems:
            raise AdapterError("the adapter does not fit this bundle:\n" + _listed(problems))

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


def new_adapter(
    manifest: Manifest,
    config: AdapterConfig,
    labels: tuple[str, ...] | None = None,
    outputs: int | None = None,
    rng: np.random.Generator | None = None,
    base: BaseValues = UNKNOWN,
) -> Adapter:
    """A fresh adapter with PEFT's initialisation (LoRA: A uniform in ±1/√(inputs of an output), B zero); the head's
    weight N(0, 0.02), its bias zero.

    The head has a row per label behind its leading ones, or `outputs` rows. `rng` draws the values (default: seed 0).
    Methods that ask the base, as DoRA does, need `base=bundle`.

    Raises:
        ConfigError: a pattern matches nothing, the settings do not suit a point, the bundle has no graphs for the
            method, or the head needs labels and there are none, or bad ones.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    problems = label_problems(labels or ())
    if problems:
        raise ConfigError("; ".join(problems))
    method = method_of(config)
    if manifest.graph_set(method.graphs) is None:
        raise ConfigError(no_graphs(method))
    points = select_points(manifest.points_in(method.graphs), config)
    if problems := [*method.problems(config, {}, points), *_length_problems(manifest, config, points)]:
        raise ConfigError("\n".join(problems))
    tensors = method.new(config, points, rng, base)
    if manifest.head is not None:
        rows = manifest.head.leading + len(labels) if labels is not None else outputs
        if not rows:
            raise ConfigError("a new head needs its labels, or its number of outputs")
        weight = rng.standard_normal((rows, manifest.head.features)).astype(np.float32) * np.float32(0.02)
        tensors |= {manifest.head.weight: weight, manifest.head.bias: np.zeros(rows, np.float32)}
        config = replace(config, modules_to_save=(manifest.head.name,))
    return Adapter(config, tensors, manifest.base_digest, manifest.task, manifest.name, labels)


def _length_problems(manifest: Manifest, config: AdapterConfig, points: Sequence[InsertionPoint]) -> list[str]:
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


def label_problems(labels: Sequence[str]) -> list[str]:
    """What is wrong with the names of classes: blank, given twice, or not valid Unicode."""
    problems = [f"the label {label!r} is blank" for label in labels if not label.strip()]
    problems += [f"the label {label!r} is given {n} times" for label, n in Counter(labels).items() if n > 1]
    return problems + [f"the label {label!r} is not valid Unicode" for label in labels if not is_unicode(label)]


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: JSON may hold halves of surrogate pairs, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_files(adapter: Adapter) -> dict[str, bytes]:
    """The adapter's files by name; equal adapters give equal bytes."""
    adapter = adapter.saved()
    method, config = adapter.method, adapter.config.without_order(adapter.targets)
    tensors = {
        _disk_name(method, name): np.ascontiguousarray(method.to_disk(config, name, adapter.tensors[name]), np.float32)
        if _is_methods(method, name)
        else np.ascontiguousarray(adapter.tensors[name], np.float32)
        for name in sorted(adapter.tensors)
    }
    content = save(tensors, {"format": "pt"})
    body = config.to_peft(_TASK_TYPES.get(adapter.task), adapter.targets)
    record = {
        "format": FORMAT,
        "format_version": "1.0" if adapter.method is LORA else ".".join(map(str, FORMAT_VERSION)),
        "base_digest": adapter.base_digest,
        "base_name": adapter.base_name,
        "task": adapter.task,
        "labels": adapter.labels,
        settings_field(config): config.to_dict(),
        "training": dict(adapter.training),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return {CONFIG_FILE: _json(body), RECORD_FILE: _json(record), TENSORS_FILE: content}


def settings_field(config: AdapterConfig) -> str:
    """The field of a record that holds the settings of a method: `lora` of LoRA."""
    return config.peft_type.lower()


def write_adapter(adapter: Adapter, folder: Path, prefix: str = "", head: str | None = None) -> None:
    """Write the adapter's files into `folder`, which PEFT's `from_pretrained` reads.

    With `prefix` or `head`, for a model that holds the base under that path ("bert"), or whose head has that name: then
    without the record of the base, for the names are no longer this base's.

    Raises:
        AdapterError: the folder cannot be written, or the prefix is no dotted path.
    """
    adapter = adapter.saved()
    files = to_files(adapter)
    if prefix or head is not None:
        config, tensors = named_inside(adapter.method, adapter.config, adapter.tensors, prefix, head)
        files = to_files(replace(adapter, config=config, tensors=tensors))
        del files[RECORD_FILE]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomic(folder / name, content)
        if RECORD_FILE not in files:
            (folder / RECORD_FILE).unlink(missing_ok=True)  # of an earlier export, with other names
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be written ({error.strerror or error})") from error


def read_adapter(
    folder: Path, manifest: Manifest | None = None, accept_base: bool = False, base: BaseValues = UNKNOWN
) -> Adapter:
    """Read an adapter's folder, ours or PEFT's own.

    PEFT does not record its base's digest: `accept_base` says that it was trained on `manifest`'s base. It may name the
    modules as those of a task model that holds the base (peft_names.py). PiSSA's becomes LoRA, which needs
    `base=bundle`.

    Raises:
        AdapterError: a file is missing, damaged, or says what cannot be represented.
    """
    return parse_adapter(read_files(folder), folder, manifest, accept_base, base)


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of an adapter's folder by name, of those that there are.

    Raises:
        AdapterError: one cannot be read, or is larger than any adapter's.
    """
    if (folder / _PICKLE).exists() and not (folder / TENSORS_FILE).exists():
        raise AdapterError(
            f"{folder / _PICKLE}: a pickle may run any code when it is read; save the adapter again as safetensors "
            "(save_pretrained(..., safe_serialization=True))"
        )
    found = {name: read_bytes(folder / name, limit) for name, limit in _LIMITS.items() if name != RECORD_FILE}
    if (folder / RECORD_FILE).exists():
        found[RECORD_FILE] = read_bytes(folder / RECORD_FILE, _LIMITS[RECORD_FILE])
    return found


def parse_adapter(
    files: Mapping[str, bytes],
    folder: Path,
    manifest: Manifest | None = None,
    accept_base: bool = False,
    base: BaseValues = UNKNOWN,
) -> Adapter:
    """The adapter whose files these are; `folder` says in errors where they lie. See `read_adapter`."""
    config = config_from_peft(_json_of(files[CONFIG_FILE], folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    content = files[TENSORS_FILE]
    tensors = _parse_tensors(content, folder / TENSORS_FILE, config)
    if RECORD_FILE in files:
        return _with_record(config, tensors, content, _json_of(files[RECORD_FILE], folder / RECORD_FILE), folder)
    if manifest is None or not accept_base:
        raise AdapterError(
            f"{folder}: the adapter does not say which base it belongs to (no {RECORD_FILE}); if it is this bundle's, "
            "say so with --accept-base"
        )
    try:
        config, tensors = placed(method_of(config), config, tensors, manifest)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from error
    adapter = Adapter(config, tensors, manifest.base_digest, manifest.task, manifest.name)
    return _beside_whole_base(adapter, folder, manifest, base) if adapter.method is PISSA else adapter


def _beside_whole_base(adapter: Adapter, folder: Path, manifest: Manifest, base: BaseValues) -> Adapter:
    """PEFT's PiSSA adapter, made for W − s·A0·B0, as LoRA beside W. A0·B0 follows from W.

    Raises:
        AdapterError: the adapter does not fit, or W is not known.
    """
    config, points = cast(LoraConfig, adapter.config), adapter.joined(manifest)
    replace(adapter, config=replace(config, init_lora_weights=True)).validate(manifest)  # A and B are as LoRA's
    try:
        if problems := adapter.method.problems(config, adapter.tensors, points):
            raise ConfigError("\n".join(problems))
        first = beginnings(config, points, np.random.default_rng(0), base)
    except ConfigError as error:
        raise AdapterError(
            f"{folder}: init_lora_weights='pissa' has changed the base that the adapter is for: {error}"
        ) from error
    return adapter.with_tensors({**adapter.tensors, **first}).saved()


def _with_record(
    config: AdapterConfig, tensors: dict[str, Floats], content: bytes, record: dict[str, Any], folder: Path
) -> Adapter:
    path = folder / RECORD_FILE
    if record.get("format") != FORMAT or str(record.get("format_version", "")).split(".")[0] != str(FORMAT_VERSION[0]):
        raise AdapterError(
            f"{path}: format {record.get('format')} {record.get('format_version')} is not known to this runtime"
        )
    if record.get("sha256") != hashlib.sha256(content).hexdigest():
        raise AdapterError(f"{folder / TENSORS_FILE}: does not have the sha256 that {RECORD_FILE} gives: it is damaged")
    labels = record.get("labels")
    valid = (
        all(isinstance(record.get(k), str) for k in ("base_digest", "base_name", "task"))
        and isinstance(record.get("training"), dict)
        and isinstance(record.get(settings_field(config)), dict)
        and (labels is None or (isinstance(labels, list) and _are_labels(cast("list[object]", labels))))
    )
    if not valid:
        raise AdapterError(f"{path}: a field is missing or malformed")
    named = config.from_peft({"peft_type": config.peft_type, **record[settings_field(config)]}, str(path))
    method = method_of(config)
    if method is PISSA:
        raise AdapterError(
            f"{path}: the settings say init_lora_weights={cast(LoraConfig, config).init_lora_weights!r}, where what "
            "PiSSA learned is saved as LoRA: they are altered, copy the adapter again"
        )
    points = named_modules(method, tensors)
    if method.decisive(named, points) != method.decisive(config, points):
        raise AdapterError(f"{path}: disagrees with {CONFIG_FILE} on what the adapter computes, as on rank or alpha")
    return Adapter(
        named,
        tensors,
        record["base_digest"],
        record["task"],
        record["base_name"],
        None if labels is None else tuple(cast("list[str]", labels)),
        record["training"],
    )


def _are_labels(values: list[object]) -> bool:
    return all(isinstance(x, str) for x in values) and not label_problems(cast("list[str]", values))


def _parse_tensors(content: bytes, path: Path, config: AdapterConfig) -> dict[str, Floats]:
    if int.from_bytes(content[:8], "little") > _HEADER_LIMIT:
        raise AdapterError(f"{path}: not a safetensors file of an adapter: its header would have more than 8 MiB")
    try:
        entries = cast("list[tuple[str, dict[str, Any]]]", safetensors.deserialize(content))  # pyright: ignore[reportUnknownMemberType]
        repeated = _repeated_keys(content)
    except (safetensors.SafetensorError, ValueError, OverflowError, RecursionError) as error:
        raise AdapterError(f"{path}: not a complete safetensors file ({error}); copy it again") from error
    tensors: dict[str, Floats] = {}
    method = method_of(config)
    problems = [f"{key} is there twice" for key in repeated]
    for key, entry in sorted(entries, key=lambda item: item[0]):
        name = _graph_name(method, config, key)
        array = _float32(entry["dtype"], entry["data"], entry["shape"])
        if name is None:
            problems.append(f"{key} {what_is(key)}")
        elif name in tensors:
            problems.append(f"{key} is there twice")
        elif array is None:
            problems.append(
                f"{key} is {entry['dtype']} {entry['shape']}; F32, F16 and BF16 with at most {_MOST_AXES} axes are read"
            )
        elif not np.isfinite(array).all():
            problems.append(f"{key} holds NaN or infinity: its training diverged, or the file is damaged")
        else:
            turned = method.from_disk(config, name, array) if _is_methods(method, name) else _of_head(array)
            tensors[name] = np.array(turned, np.float32, order="C")
    if problems:
        raise AdapterError(f"{path}: cannot be used:\n{_listed(problems)}")
    return tensors


def _of_head(array: Floats) -> Floats:
    """A head's tensor; the kernel of a convolution of one pixel is a matrix `[outputs, channels]`."""
    return array.reshape(array.shape[:2]) if array.ndim == 4 and array.shape[2:] == (1, 1) else array


def _repeated_keys(content: bytes) -> list[str]:
    """The names that a complete safetensors file holds more than once: its format forbids them, its parser does not."""
    repeated: list[str] = []

    def note_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.extend(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        return found

    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")], object_pairs_hook=note_repeated)
    return repeated


def _float32(dtype: str, data: bytes | bytearray, shape: Sequence[int]) -> Floats | None:
    """The array as real numbers, or None if it is of another type or of a shape that no adapter has."""
    if len(shape) > _MOST_AXES or any(size > len(data) for size in shape):
        return None
    if dtype == "F32":
        return np.frombuffer(data, "<f4").reshape(shape)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32).reshape(shape)
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return None


def _is_methods(method: Method, name: str) -> bool:
    """Whether a tensor is the method's, not the head's."""
    return name in method.shared or split_name(name)[1] in method.disk


def _root(method: Method) -> str:
    """What the paths of modules begin with: where a method has none of its own, PEFT wraps no model around the base."""
    return _PREFIX if method.disk else _ROOT


def _shared_name(method: Method, name: str) -> str:
    return _ROOT + name if method.disk else name


def _disk_name(method: Method, name: str) -> str:
    if name in method.shared:
        return _shared_name(method, name)
    point, suffix = split_name(name)
    return f"{_PREFIX}{point}.{method.disk[suffix]}" if suffix in method.disk else _root(method) + name


def _graph_name(method: Method, config: AdapterConfig, key: str) -> str | None:
    for name in method.shared:
        if key == _shared_name(method, name):
            return name
    root = _root(method)
    if not key.startswith(root):
        return None
    name = key.removeprefix(root)
    head = name.replace(".modules_to_save.", ".")
    if split_name(head)[0] in (config.modules_to_save or ()):
        return head
    for suffix, written in method.disk.items():
        if name.endswith(f".{written}"):
            return f"{name.removesuffix(written)}{suffix}"
    return head if head.endswith((".weight", ".bias")) and head.count(".") == 1 else None


def _listed(problems: Sequence[str]) -> str:
    more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "\n".join([*(f"  {problem}" for problem in problems[:_SHOWN]), *more])


def _json(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _json_of(content: bytes, path: Path) -> dict[str, Any]:
    try:
        body = json.loads(content.decode("utf-8"))
        if b"\\u" in content:
            json.dumps(body, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be written again
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(body, dict):
        raise AdapterError(f"{path}: not a JSON object")
    return cast("dict[str, Any]", body)


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most `limit` bytes.

    Raises:
        AdapterError: there is none, or it is larger.
    """
    try:
        if not path.is_file() and path.exists():
            raise AdapterError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)  # a buffer of that size is made first
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > limit:
        raise AdapterError(f"{path}: larger than any adapter (more than {limit:,} bytes)")
    return content
