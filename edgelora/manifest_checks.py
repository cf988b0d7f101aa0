"""What a manifest may say that no bundle means: files not listed, sizes below 1, a task without its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgelora.typed_json import read_typed

if TYPE_CHECKING:
    from edgelora.manifest import InsertionPoint, LanguageModel, Manifest, TensorSpec, TrainingGraph

_DTYPES = frozenset(
    "bool float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()  # noqa: SIM905
)
_GENERATION = "text-generation"
_OUTPUT = {
    "sequence-classification": "logits",
    "token-classification": "logits",
    "regression": "logits",
    "sentence-embedding": "embedding",
    "semantic-segmentation": "logits",
    "keypoint-detection": "logits",
    "image-classification": "logits",
    "audio-classification": "logits",
    "speaker-verification": "embedding",
    _GENERATION: "logits",
}
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_VALUES_A_BYTE = 8
_TOKEN_INPUTS = ("input_ids", "attention_mask", "position_ids")


def check_references(manifest: Manifest) -> None:
    """Raise ValueError unless every file that is named is listed, and there is an output."""
    named = [manifest.forward, *(file for graph in manifest.training for file in graph.all_files)]
    for prefix in manifest.prefixes:
        named += [prefix.file, prefix.forward, *(file for graph in prefix.training for file in graph.all_files)]
    for graphs in manifest.methods.values():
        named += [graphs.forward, *(file for graph in graphs.training for file in graph.all_files)]
        named += [x for x in (graphs.norms, graphs.score, graphs.decode, graphs.before) if x is not None]
    named += [file for file in (manifest.mixed, manifest.values) if file is not None]
    if (language := manifest.language) is not None:
        optional = (language.decode_mixed, language.chat_template)
        named += [language.score, language.decode, *(file for file in optional if file is not None)]
    if manifest.preprocessing.get("kind") == "text":
        named.append(read_typed(str, manifest.preprocessing.get("tokenizer"), "preprocessing.tokenizer"))
    if manifest.preprocessing.get("kind") == "audio" and manifest.preprocessing.get("features") is not None:
        named.append(read_typed(str, manifest.preprocessing["features"], "preprocessing.features"))
    absent = [name for name in named if name not in manifest.files]
    if absent:
        raise ValueError(f"files does not list {', '.join(absent)}")
    if not manifest.outputs:
        raise ValueError("outputs is empty")


def value_problems(manifest: Manifest) -> list[str]:
    """What is wrong with a manifest whose fields have the right types."""
    most = _VALUES_A_BYTE * max(
        sum(entry.size for entry in manifest.files.values()), 1
    )  # no side of a weight is longer
    problems = [
        *(p for point in manifest.points for p in _point_problems(point, most)),
        *_repeated("point", [point.id for point in manifest.points]),
        *_repeated("input", [spec.name for spec in manifest.inputs]),
        *_spec_problems("inputs", manifest.inputs),
        *_spec_problems("outputs", manifest.outputs),
        *(p for graph in _training(manifest) for p in _training_problems(graph)),
        *(p for prefix in manifest.prefixes for p in _spec_problems(f"prefix {prefix.name}", prefix.kept)),
        *(p for name in manifest.methods for p in _set_problems(manifest, name, most)),
        *_task_problems(manifest),
    ]
    if manifest.language is not None:
        problems += [*_language_problems(manifest.language, most), *_decoder_problems(manifest)]
    elif manifest.task == _GENERATION:
        problems.append("the task text-generation needs the field language")
    if manifest.head is not None and not 0 < manifest.head.features <= most:
        problems.append(f"the head has {manifest.head.features} features")
    return problems + [f"{name} has {entry.size} bytes" for name, entry in manifest.files.items() if entry.size < 0]


def _point_problems(point: InsertionPoint, most: int) -> Iterator[str]:
    sizes = {"in_features": point.in_features, "out_features": point.out_features, "groups": point.groups}
    for name, size in [*sizes.items(), *(("kernel", size) for size in point.kernel)]:
        if not 0 < size <= most:
            yield f"point {point.id!r} has {name} {size}"
    if point.layer is not None and point.layer < 0:
        yield f"point {point.id!r} has layer {point.layer}"


def _spec_problems(where: str, specs: tuple[TensorSpec, ...]) -> Iterator[str]:
    for spec in specs:
        if spec.dtype not in _DTYPES:
            yield f"{where}: {spec.name!r} has type {spec.dtype!r}"
        if any(isinstance(size, int) and size < 1 for size in spec.shape):
            yield f"{where}: {spec.name!r} has shape {list(spec.shape)}"


def _set_problems(manifest: Manifest, name: str, most: int) -> Iterator[str]:
    graphs = manifest.methods[name]
    for point in graphs.points or ():
        yield from _point_problems(point, most)
    yield from _repeated(f"point of {name}", [point.id for point in graphs.points or ()])
    for one in graphs.inputs:
        if any(isinstance(size, int) and not 0 < size <= most for size in one.shape):
            yield f"the graphs of {name}: {one.name!r} has shape {list(one.shape)}"
        if one.neutral is None and not all(isinstance(size, int) for size in one.shape):
            yield f"the graphs of {name}: {one.name!r} stands for a value of the base and has no size of its own"
    if manifest.language is None and any((graphs.score, graphs.decode, graphs.before)):
        yield f"the graphs of {name} continue text, and the base does not"
    if graphs.before is not None and (graphs.decode is None or not graphs.inputs):
        yield f"the graphs of {name} have keys and values before a text, and nothing that reads them"
    if manifest.values is None and any(one.neutral is None for one in graphs.inputs):
        yield f"the graphs of {name} take values of the base, and no file tells them"


def _training(manifest: Manifest) -> Iterator[TrainingGraph]:
    yield from manifest.training
    for graphs in (*manifest.prefixes, *manifest.methods.values()):
        yield from graphs.training


def _training_problems(graph: TrainingGraph) -> Iterator[str]:
    yield from _spec_problems(graph.file, graph.inputs)
    if graph.loss != "cotangent" and "loss" not in graph.outputs:
        yield f"{graph.file} returns no loss"


def _task_problems(manifest: Manifest) -> Iterator[str]:
    needed, names = _OUTPUT.get(manifest.task), [spec.name for spec in manifest.outputs]
    if needed is not None and needed not in names:
        yield f"the task {manifest.task} needs the output {needed!r}"
    if not manifest.inputs or not all(spec.shape for spec in manifest.inputs):
        yield "an input without a batch dimension, or none"
    longest = manifest.preprocessing.get("max_length", 1)
    if not isinstance(longest, int) or isinstance(longest, bool) or longest < 1:
        yield f"preprocessing.max_length must be a whole number from 1, not {longest!r}"
    if manifest.preprocessing.get("kind") == "text":
        for spec in manifest.inputs:
            if spec.name in _TEXT_INPUTS and (len(spec.shape) != 2 or not spec.dtype.startswith("int")):
                yield f"the text input {spec.name!r} has type {spec.dtype!r} and shape {list(spec.shape)}"


def _language_problems(language: LanguageModel, most: int) -> Iterator[str]:
    for name in ("layers", "kv_heads", "head_size", "vocabulary"):
        if not 0 < (size := getattr(language, name)) <= most:
            yield f"language.{name} is {size}"
    if language.max_length < 0:
        yield f"language.max_length is {language.max_length}"
    for token in (*language.eos, *(() if language.bos is None else (language.bos,))):
        if not 0 <= token < language.vocabulary:
            yield f"language names token {token} of {language.vocabulary}"


def _decoder_problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong beside the field language, where it is there."""
    if manifest.task != _GENERATION:
        yield f"the field language is of the task {_GENERATION}, not of {manifest.task}"
    if manifest.head is not None:
        yield "a language model with a new head"
    names = [spec.name for spec in manifest.inputs]
    if not set(_TOKEN_INPUTS[:2]) <= set(names) <= set(_TOKEN_INPUTS):
        yield f"a language model takes {', '.join(_TOKEN_INPUTS)}, not {', '.join(names)}"
    for spec in manifest.inputs:
        if len(spec.shape) != 2 or spec.dtype != "int64":
            yield f"the input {spec.name!r} has type {spec.dtype!r} and shape {list(spec.shape)}"
    for spec in manifest.outputs:
        if len(spec.shape) != 3:
            yield f"the output {spec.name!r} has shape {list(spec.shape)}"


def _repeated(what: str, names: list[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"the {what} {name!r} is there {count} times"
