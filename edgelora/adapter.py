"""An adapter: named tensors and their settings, in PEFT's layout on disk.

In memory tensors have the graph's orientation, A `[in, r]`, B `[r, out]`; on disk PEFT's, lora_A
`[r, in]`, lora_B `[out, r]`. A convolution's are the same in both, A `[r, in, *kernel]`, B `[out, r/groups, 1, ...]`.
`docs/adapter-format.md` specifies the files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, ConfigError
from edgelora.files import write_atomic
from edgelora.manifest import InsertionPoint, Manifest
from edgelora.targets import select_points

CONFIG_FILE, TENSORS_FILE, RECORD_FILE = "adapter_config.json", "adapter_model.safetensors", "edgelora.json"
FORMAT, FORMAT_VERSION = "edgelora-adapter", (1, 0)
_PREFIX = "base_model.model."
_TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "sentence-embedding": "FEATURE_EXTRACTION",
    "feature-extraction": "FEATURE_EXTRACTION",
}
_JSON_LIMIT, _TENSORS_LIMIT = 16 << 20, 2 << 30
_SHOWN = 20
_MOST_AXES = 5

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Adapter:
    """One person's adapter.

    `tensors` holds `{point}.lora_A` and `{point}.lora_B` (not scaled) in the point's shapes, and the head's
    weight `[outputs, features]` and bias `[outputs]`, all float32. `labels` names the head's outputs, None where
    they have no names (regression) or there is no head. `training` is the record of the run that made it, empty
    if none did. Nothing is checked here; `validate` does.
    """

    config: LoraConfig
    tensors: Mapping[str, Floats]
    base_digest: str
    task: str
    base_name: str = ""
    labels: tuple[str, ...] | None = None
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def points(self) -> tuple[str, ...]:
        """The ids of the insertion points that the adapter joins."""
        return tuple(name.removesuffix(".lora_A") for name in self.tensors if name.endswith(".lora_A"))

    @property
    def parameters(self) -> int:
        """The number of values that the adapter holds."""
        return sum(tensor.size for tensor in self.tensors.values())

    def with_tensors(self, tensors: Mapping[str, Floats]) -> Adapter:
        """The same adapter with other values."""
        return replace(self, tensors=dict(tensors))

    def feeds(self, manifest: Manifest) -> dict[str, Floats]:
        """The graph inputs: B multiplied by the scale, rank 0 where a point has no adapter, the head if any.

        A and B are in the point's shapes, float32. Dropout's factor is not in them: it is training's alone.
        """
        feeds = absent_adapter(manifest)
        for point in manifest.points:
            if point.input_a in self.tensors:
                feeds[point.input_a] = np.ascontiguousarray(self.tensors[point.input_a])
                scale = np.float32(self.config.scale(point.id))
                feeds[point.input_b] = np.ascontiguousarray(self.tensors[point.input_b] * scale)
        for name in head_names(manifest):
            if name in self.tensors:
                feeds[name] = np.ascontiguousarray(self.tensors[name])
        return feeds

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
        problems = [
            *self._shape_problems(manifest),
            *self._rank_problems(manifest),
            *self._head_problems(manifest),
            *(f"{n} is {t.dtype}, not float32" for n, t in self.tensors.items() if t.dtype != np.float32),
            *(f"{n} holds NaN or infinity" for n, t in self.tensors.items() if not np.isfinite(t).all()),
        ]
        if problems:
            raise AdapterError("the adapter does not fit this bundle:\n" + _listed(problems))

    def _shape_problems(self, manifest: Manifest) -> list[str]:
        expected: dict[str, tuple[int | str, ...]] = {}
        for point in manifest.points:
            rank = self.config.rank(point.id)
            a, b = point.shape_a(rank), point.shape_b(rank)
            expected |= {point.input_a: a, point.input_b: b} if point.kernel else _any_rank(point)
        if manifest.head is not None:
            outputs = "outputs" if self.labels is None else len(self.labels)
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

    def _rank_problems(self, manifest: Manifest) -> list[str]:
        problems = group_problems(self.config, [p for p in manifest.points if p.input_a in self.tensors])
        suffixes = (".lora_A", ".lora_B")
        for point in sorted({n.removesuffix(x) for x in suffixes for n in self.tensors if n.endswith(x)}):
            a, b = self.tensors.get(f"{point}.lora_A"), self.tensors.get(f"{point}.lora_B")
            rank = self.config.rank(point)
            if a is None or b is None:
                problems.append(f"{point} has {'lora_B and no lora_A' if a is None else 'lora_A and no lora_B'}")
            elif a.ndim == b.ndim == 2 and not a.shape[1] == b.shape[0] == rank:
                problems.append(
                    f"{point}: lora_A has rank {a.shape[1]}, lora_B {b.shape[0]} where its settings say {rank}"
                )
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


def _any_rank(point: InsertionPoint) -> dict[str, tuple[int | str, ...]]:
    """The shapes of a linear point's tensors, the rank left open: A and B are held against each other elsewhere."""
    return {point.input_a: (point.in_features, "r"), point.input_b: ("r", point.out_features)}


def group_problems(config: LoraConfig, points: Sequence[InsertionPoint]) -> list[str]:
    """Convolutions in groups whose rank is no multiple of them: B could not be divided (as in PEFT)."""
    return [
        f"{point.id} is a convolution in {point.groups} groups and its rank {config.rank(point.id)} is no multiple of "
        "that: give it another rank with rank_pattern, or leave it out of target_modules"
        for point in points
        if config.rank(point.id) % point.groups
    ]


def absent_adapter(manifest: Manifest) -> dict[str, Floats]:
    """The base model's feeds: at every point an A and a B of rank 0."""
    feeds: dict[str, Floats] = {}
    for point in manifest.points:
        feeds[point.input_a] = np.zeros(point.shape_a(0), np.float32)
        feeds[point.input_b] = np.zeros(point.shape_b(0), np.float32)
    return feeds


def head_names(manifest: Manifest) -> tuple[str, ...]:
    """The names of the head's tensors, none if the task has no head."""
    return () if manifest.head is None else (manifest.head.weight, manifest.head.bias)


def new_adapter(
    manifest: Manifest,
    config: LoraConfig,
    labels: tuple[str, ...] | None = None,
    outputs: int | None = None,
    rng: np.random.Generator | None = None,
) -> Adapter:
    """A fresh adapter: A uniform in ±1/√(inputs of an output) (PEFT's Kaiming initialisation), B zero; head N(0,
    0.02), bias zero.

    The head has a row per label, or `outputs` rows. `rng` draws the values (default: seed 0).

    Raises:
        ConfigError: a pattern matches nothing, a rank does not suit a convolution in groups, or the head needs
            labels and there are none, or bad ones.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    problems = label_problems(labels or ())
    if problems:
        raise ConfigError("; ".join(problems))
    tensors: dict[str, Floats] = {}
    points = select_points(manifest.points, config)
    if problems := group_problems(config, points):
        raise ConfigError("\n".join(problems))
    for point in points:
        tensors |= _fresh(point, config.rank(point.id), rng)
    if manifest.head is not None:
        rows = len(labels) if labels is not None else outputs
        if not rows:
            raise ConfigError("a new head needs its labels, or its number of outputs")
        weight = rng.standard_normal((rows, manifest.head.features)).astype(np.float32) * np.float32(0.02)
        tensors |= {manifest.head.weight: weight, manifest.head.bias: np.zeros(rows, np.float32)}
        config = replace(config, modules_to_save=(manifest.head.name,))
    return Adapter(config, tensors, manifest.base_digest, manifest.task, manifest.name, labels)


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


def _fresh(point: InsertionPoint, rank: int, rng: np.random.Generator) -> dict[str, Floats]:
    bound = 1.0 / (point.in_features * math.prod(point.kernel)) ** 0.5
    a = rng.uniform(-bound, bound, point.shape_a(rank)).astype(np.float32)
    return {point.input_a: a, point.input_b: np.zeros(point.shape_b(rank), np.float32)}


def to_files(adapter: Adapter) -> dict[str, bytes]:
    """The adapter's files by name; equal adapters give equal bytes."""
    tensors = {_disk_name(name): _transposed(name, adapter.tensors[name]) for name in sorted(adapter.tensors)}
    content = save(tensors, {"format": "pt"})
    config = adapter.config.to_peft(_TASK_TYPES.get(adapter.task))
    config["target_modules"] = sorted(adapter.points)  # exact, whatever else the patterns would match elsewhere
    record = {
        "format": FORMAT,
        "format_version": ".".join(map(str, FORMAT_VERSION)),
        "base_digest": adapter.base_digest,
        "base_name": adapter.base_name,
        "task": adapter.task,
        "labels": adapter.labels,
        "lora": adapter.config.to_dict(),
        "training": dict(adapter.training),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return {CONFIG_FILE: _json(config), RECORD_FILE: _json(record), TENSORS_FILE: content}


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the adapter's files into `folder`, which PEFT's `from_pretrained` reads.

    Raises:
        AdapterError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in to_files(adapter).items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be written ({error.strerror or error})") from error


def read_adapter(folder: Path, manifest: Manifest | None = None, accept_base: bool = False) -> Adapter:
    """Read an adapter's folder, ours or PEFT's own.

    PEFT does not record its base's digest: `accept_base` says that it was trained on `manifest`'s base.

    Raises:
        AdapterError: a file is missing, damaged, or says what cannot be represented.
    """
    config = LoraConfig.from_peft(_read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    content = _read_bytes(folder / TENSORS_FILE, _TENSORS_LIMIT)
    tensors = _parse_tensors(content, folder / TENSORS_FILE)
    if (folder / RECORD_FILE).exists():
        return _with_record(config, tensors, content, folder)
    if manifest is None or not accept_base:
        raise AdapterError(
            f"{folder}: the adapter does not say which base it belongs to (no {RECORD_FILE}); if it is this bundle's, "
            "say so with --accept-base"
        )
    return Adapter(config, tensors, manifest.base_digest, manifest.task, manifest.name)


def _with_record(config: LoraConfig, tensors: dict[str, Floats], content: bytes, folder: Path) -> Adapter:
    path = folder / RECORD_FILE
    record = _read_json(path)
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
        and isinstance(record.get("lora"), dict)
        and (labels is None or (isinstance(labels, list) and _are_labels(cast("list[object]", labels))))
    )
    if not valid:
        raise AdapterError(f"{path}: a field is missing or malformed")
    named = LoraConfig.from_peft({"peft_type": "LORA", **record["lora"]}, str(path))
    same = (named.r, named.lora_alpha, named.rank_pattern, named.alpha_pattern, named.use_rslora)
    if same != (config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern, config.use_rslora):
        raise AdapterError(f"{path}: disagrees with {CONFIG_FILE} on rank or alpha")
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


def _parse_tensors(content: bytes, path: Path) -> dict[str, Floats]:
    try:
        entries = cast("list[tuple[str, dict[str, Any]]]", safetensors.deserialize(content))  # pyright: ignore[reportUnknownMemberType]
        repeated = _repeated_keys(content)
    except (safetensors.SafetensorError, ValueError, OverflowError, RecursionError) as error:
        raise AdapterError(f"{path}: not a complete safetensors file ({error}); copy it again") from error
    tensors: dict[str, Floats] = {}
    problems = [f"{key} is there twice" for key in repeated]
    for key, entry in sorted(entries, key=lambda item: item[0]):
        name = _graph_name(key)
        array = _float32(entry["dtype"], entry["data"], entry["shape"])
        if name is None:
            problems.append(f"{key} is not a tensor that this runtime knows")
        elif name in tensors:
            problems.append(f"{key} is there twice")
        elif array is None:
            problems.append(
                f"{key} is {entry['dtype']} {entry['shape']}; F32, F16 and BF16 with at most {_MOST_AXES} axes are read"
            )
        elif not np.isfinite(array).all():
            problems.append(f"{key} holds NaN or infinity: its training diverged, or the file is damaged")
        else:
            tensors[name] = _transposed(name, array)
    if problems:
        raise AdapterError(f"{path}: cannot be used:\n{_listed(problems)}")
    return tensors


def _repeated_keys(content: bytes) -> list[str]:
    """The names that a complete safetensors file holds more than once: its format forbids them, its parser does not."""
    repeated: list[str] = []

    def note_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
        repeated.extend(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        return dict(pairs)

    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")], object_pairs_hook=note_repeated)
    return repeated


def _float32(dtype: str, data: bytes | bytearray, shape: Sequence[int]) -> Floats | None:
    """The array in float32, or None if it is of another type or of a shape that no adapter has."""
    if len(shape) > _MOST_AXES or any(size > len(data) for size in shape):
        return None
    if dtype == "F32":
        return np.frombuffer(data, "<f4").astype(np.float32).reshape(shape)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32).reshape(shape)
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return None


def _disk_name(name: str) -> str:
    return f"{_PREFIX}{name}.weight" if name.endswith((".lora_A", ".lora_B")) else _PREFIX + name


def _graph_name(key: str) -> str | None:
    if not key.startswith(_PREFIX):
        return None
    name = key.removeprefix(_PREFIX)
    for part in (".lora_A", ".lora_B"):
        if name.endswith(f"{part}.weight"):
            return name.removesuffix(".weight")
    head = name.replace(".modules_to_save.", ".")
    return head if head.endswith((".weight", ".bias")) and head.count(".") == 1 else None


def _transposed(name: str, tensor: Floats) -> Floats:
    """From the graph's orientation to the disk's or back: A and B are transposed, the head is not."""
    is_factor = name.endswith((".lora_A", ".lora_B")) and tensor.ndim == 2
    return np.ascontiguousarray(tensor.T if is_factor else tensor, np.float32)


def _listed(problems: Sequence[str]) -> str:
    more = [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "\n".join([*(f"  {problem}" for problem in problems[:_SHOWN]), *more])


def _json(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(_read_bytes(path, _JSON_LIMIT).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(body, dict):
        raise AdapterError(f"{path}: not a JSON object")
    return cast("dict[str, Any]", body)


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        if not path.is_file() and path.exists():
            raise AdapterError(f"{path}: not a file")
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > limit:
        raise AdapterError(f"{path}: larger than any adapter (more than {limit:,} bytes)")
    return content
