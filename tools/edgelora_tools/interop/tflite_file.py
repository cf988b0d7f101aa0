"""An adapter in the weights of the TFLite file that its bundle was made from: the same file, with other numbers in it.

Constants lie in the file as they are used, so new numbers of the same type take the places of the old ones, and so do
scales: nothing moves, and all else is as it was, byte for byte. What cannot be written so is refused by name: weights
that are stored sparse, shared with others, or behind which no operator of the file stands that the adapter could join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tflite

from edgelora.bundle import Bundle
from edgelora.errors import AdapterError, ConversionError
from edgelora.files import write_atomic
from edgelora.manifest import BIAS_OP, InsertionPoint, Manifest
from edgelora_tools.interop.tflite_weights import Stored, real_numbers, stored, stored_bias
from edgelora_tools.methods import METHODS
from edgelora_tools.methods.base import Change, Floats, Merging
from edgelora_tools.sources.tflite.model import Graph, Operator, Tensor, read_model

# The axes of each operator's weight as a point has them: [in, out], or [out, in/groups, height, width].
_AS_POINT = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2), "FULLY_CONNECTED": (1, 0)}
_WEIGHT, _BIAS = 1, 2  # inputs of these operators
_SHOWN = 5


@dataclass(frozen=True)
class MergedFile:
    """The content of a file with an adapter in it; the points that changed, and those of them whose scales grew."""

    content: bytes
    changed: tuple[str, ...]
    rescaled: tuple[str, ...]


def merged_file(bundle: Bundle, graphs: str, feeds: Mapping[str, Floats], original: Path) -> MergedFile:
    """The original with an adapter in its weights: of the method `graphs` (`Method.graphs`), whose inputs are `feeds`.

    A head is not in it: what the file returns is the source's. No adapter at any point gives the original's own bytes.

    Raises:
        ConversionError: the original is missing, damaged, or not the file that the bundle was made from.
        AdapterError: the method is no change of weights, or the file has no place for what the adapter changes; all
            points are named.
    """
    manifest = bundle.verified().manifest
    merging = METHODS[graphs].merging
    if merging is None:
        raise AdapterError(f"a {graphs} adapter is no change of the base's weights, and cannot be put into its file")
    told, content = _original(manifest, original)
    file = Constants(read_model(content, str(original)), told)
    edits: dict[int, Stored] = {}
    changed, rescaled, problems = list[str](), list[str](), list[str]()
    for point in manifest.points_in(graphs):
        try:
            made = file.edits(point, _change(point, merging, feeds))
        except AdapterError as error:
            problems.append(f"{point.id}: {error}")
            continue
        edits |= made
        changed += [point.id] if made else []
        rescaled += [point.id] if any((one.growth != 1).any() for one in made.values()) else []
    problems += file.shared(edits)
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise AdapterError(
            f"{original} has no place for this adapter: {'; '.join(problems[:_SHOWN])}{more}; train one without these "
            "points (--target-modules), or export it to onnx"
        )
    if edits:
        file.write(edits)
        _prove(file.graph, content, str(original))
    return MergedFile(bytes(content), tuple(changed), tuple(rescaled))


def save_file(merged: MergedFile, original: Path, path: Path) -> None:
    """Write the content to `path`, at once and complete.

    Raises:
        ConversionError: `path` is the original or a directory, or the disk refuses.
    """
    try:
        if path.exists() and path.samefile(original):
            raise ConversionError(f"{path} is the original, which other people's adapters need: name another file")
        if path.is_dir():
            raise ConversionError(f"{path} is a directory: name the file to write")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, merged.content)
    except OSError as error:
        raise ConversionError(f"{path} could not be written: {error.strerror or error}") from error


def refuse_head(manifest: Manifest) -> None:
    """Raise AdapterError if predictions are made by a head, for which a file has no place."""
    if manifest.head is not None:
        raise AdapterError(
            f"a bundle for {manifest.task} has a new head, and the original file no place for it: convert with --task "
            "feature-extraction to adapt what the file returns, or export to onnx, where the head comes along"
        )


def _original(manifest: Manifest, path: Path) -> tuple[Mapping[str, int], bytearray]:
    """The file's tensors by the name of the weight, and its content, which must be the bundle's source."""
    told: Any = manifest.source.get("tflite")
    if manifest.source.get("kind") != "tflite":
        raise ConversionError(
            f"the bundle was made from a {manifest.source.get('kind')} source, not from a TFLite file"
        )
    if not isinstance(told, dict) or not isinstance(told.get("weights"), dict):
        raise ConversionError("the bundle does not tell the places of its weights in its source: convert it again")
    try:
        content = bytearray(path.read_bytes())
    except OSError as error:
        raise ConversionError(f"{path} cannot be read: {error.strerror or error}") from error
    graph = read_model(content, str(path))
    if graph.sha256 != told.get("sha256"):
        raise ConversionError(
            f"{path} is not the file that the bundle was made from: pass the one whose sha256 is {told.get('sha256')}"
        )
    if tflite.Model.GetRootAs(content, 0).SubgraphsLength() != 1:
        raise ConversionError(f"{path} has several subgraphs, which may share weights: it is not written to")
    return told["weights"], content


def _change(point: InsertionPoint, merging: Merging, feeds: Mapping[str, Floats]) -> Change:
    """What the adapter makes of a point; the base's own values, where the adapter has these, are new values."""
    low = feeds.get(point.input_a)
    absent = point.op == BIAS_OP or (low is not None and not low.size)
    change = Change() if absent else merging(point, feeds)
    if change is None:
        raise AdapterError("its adapter reads all channels, where each group of the convolution reads its own")
    weight, bias = (feeds.get(f"{point.id}.base_{kind}") for kind in ("weight", "bias"))
    return Change(
        change.weight if weight is None else lambda _: weight.astype(np.float64),
        change.bias if bias is None else lambda _: bias.astype(np.float64).reshape(-1),
    )


class Constants:
    """The constants of a graph that are a file's weights and biases: views of its content, which can be written to."""

    def __init__(self, graph: Graph, weights: Mapping[str, int]) -> None:
        self.graph, self.weights = graph, weights
        self.readers: dict[int, list[tuple[Operator, int]]] = {}
        self.makers: dict[int, Operator] = {}
        for node in graph.operators:
            for place, index in enumerate(node.inputs):
                self.readers.setdefault(index, []).append((node, place))
            self.makers |= dict.fromkeys(node.outputs, node)

    def edits(self, point: InsertionPoint, change: Change) -> dict[int, Stored]:
        """What constants of a point are to hold that they do not hold now, by index.

        Raises:
            AdapterError: they cannot.
        """
        if change.weight is None and change.bias is None:
            return {}
        weight, nodes, perm = self._weight(point)
        held, made, growth = self.graph.tensors[weight], dict[int, Stored](), np.ones(1)
        if change.weight is not None:
            wanted = change.weight(real_numbers(held).transpose(perm)).transpose(np.argsort(perm))
            made[weight] = stored(held, wanted)
            growth = made[weight].growth
        bias = self._bias(nodes)
        if bias < 0 and change.bias is not None and change.bias(np.zeros(point.out_features)).any():
            raise AdapterError("it has no bias of its own, and the adapter adds one")
        in_codes = bias >= 0 and self.graph.tensors[bias].dtype == np.int32
        if bias >= 0 and (change.bias is not None or (in_codes and (growth != 1).any())):
            place = self._storage(bias, nodes, "bias")
            tensor, moved = self.graph.tensors[place], None
            if change.bias is not None:
                before = np.broadcast_to(real_numbers(tensor).reshape(-1), (point.out_features,))
                moved = change.bias(before).reshape(tensor.shape)
            made[place] = stored_bias(tensor, moved, growth if in_codes else np.ones(1))
        return {index: one for index, one in made.items() if self._differs(index, one)}

    def _weight(self, point: InsertionPoint) -> tuple[int, list[Operator], tuple[int, ...]]:
        """The constant that stores a point's weight, what reads it, and the order of its axes that the point has."""
        index: Any = self.weights.get(f"{point.id}.weight")
        if not isinstance(index, int) or not 0 <= index < len(self.graph.tensors):
            raise AdapterError("the file has no product with its weight alone")
        if list(self.weights.values()).count(index) > 1:
            raise AdapterError("others read its weight too")
        nodes = [node for node, place in self.readers.get(index, []) if place == _WEIGHT and node.kind in _AS_POINT]
        kinds = {node.kind for node in nodes}
        if len(kinds) != 1:
            raise AdapterError("the file has no product with its weight alone")
        perm, told = _AS_POINT[kinds.pop()], self.graph.tensors[index].shape
        inner = point.in_features // point.groups
        linear = (point.in_features, point.out_features)
        shape = (point.out_features, inner, *point.kernel) if point.kernel else linear
        fits = len(perm) == len(told) and (point.op == BIAS_OP or tuple(told[i] for i in perm) == shape)
        if not fits:
            raise AdapterError(f"its weight is {list(told)} in the file")
        return self._storage(index, nodes, "weight"), nodes, perm

    def _bias(self, nodes: Sequence[Operator]) -> int:
        """The tensor of the bias of these operators, -1 where they have none.

        Raises:
            AdapterError: each has its own.
        """
        found = {node.inputs[_BIAS] if len(node.inputs) > _BIAS else -1 for node in nodes}
        if len(found) > 1:
            raise AdapterError("its weight is read with several biases")
        return found.pop()

    def _storage(self, index: int, nodes: Sequence[Operator], what: str) -> int:
        """The constant behind a tensor that these operators read: itself, or what a DEQUANTIZE makes it of.

        Raises:
            AdapterError: others read it too, or it is sparse.
        """
        if any(not any(node is own for own in nodes) for node, _ in self.readers[index]):
            raise AdapterError(f"others read its {what} too")
        tensor, maker = self.graph.tensors[index], self.makers.get(index)
        if tensor.data is None and maker is not None and maker.kind == "DEQUANTIZE":
            index = maker.inputs[0]
            if len(self.readers[index]) > 1:
                raise AdapterError(f"others read its {what} too")
            tensor, maker = self.graph.tensors[index], self.makers.get(index)
        if tensor.sparsity is not None or (maker is not None and maker.kind == "DENSIFY"):
            raise AdapterError(f"its {what} is stored sparse, without the places of zeros")
        if tensor.data is None:
            raise AdapterError(f"its {what} is computed in the file")
        return index

    def shared(self, edits: Mapping[int, Stored]) -> list[str]:
        """What cannot be written because other tensors lie in the same bytes."""
        found: list[str] = []
        for index in edits:
            own = _views(self.graph.tensors[index])
            for other, tensor in enumerate(self.graph.tensors):
                if other != index and any(np.may_share_memory(a, b) for a in own for b in _views(tensor)):
                    names = self.graph.tensors[index].name, tensor.name
                    found.append(f"the tensors {names[0]!r} and {names[1]!r} lie in the same bytes")
                    break
        return found

    def _differs(self, index: int, edit: Stored) -> bool:
        tensor = self.graph.tensors[index]
        assert tensor.data is not None
        same = np.array_equal(edit.data, tensor.data)
        if edit.scale is not None and tensor.quantization is not None:
            same = same and np.array_equal(edit.scale, tensor.quantization.scale)
        return not same

    def write(self, edits: Mapping[int, Stored]) -> None:
        """Put new numbers and scales in the places of the old ones."""
        for index, edit in edits.items():
            tensor = self.graph.tensors[index]
            assert tensor.data is not None
            tensor.data[...] = edit.data
            if edit.scale is not None and tensor.quantization is not None:
                tensor.quantization.scale[...] = edit.scale


def _views(tensor: Tensor) -> list[np.ndarray]:
    """The parts of the file that hold a tensor's numbers and scales."""
    return [x for x in (tensor.data, tensor.quantization and tensor.quantization.scale) if x is not None]


def _prove(written: Graph, content: bytearray, where: str) -> None:
    """Read the content again: it must hold what was written, and all else as it was read before.

    Raises:
        ConversionError: constants lie over what describes the graph.
    """
    try:
        found = read_model(content, where)
        same = (found.operators, found.inputs, found.outputs) == (written.operators, written.inputs, written.outputs)
        same = same and len(found.tensors) == len(written.tensors) and all(map(_alike, found.tensors, written.tensors))
    except ConversionError:
        same = False
    if not same:
        raise ConversionError(f"{where}: a damaged TFLite file: its weights lie over what describes the graph")


def _alike(a: Tensor, b: Tensor) -> bool:
    told = [(t.name, t.shape, t.open_batch, t.dtype) for t in (a, b)]
    if told[0] != told[1] or not _same_bytes(a.data, b.data):
        return False
    if a.quantization is None or b.quantization is None:
        return a.quantization is b.quantization
    return a.quantization.same_as(b.quantization) and a.quantization.axis == b.quantization.axis


def _same_bytes(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b if a is None or b is None else a.tobytes() == b.tobytes()
