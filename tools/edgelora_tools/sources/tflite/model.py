"""What a TFLite file holds, as plain data: tensors, their quantization, operators and their options.

The file is untrusted: nothing is read past its end, a vector's length is believed only as far as the file could
hold it, constants are views of it, and whatever else is wrong becomes one ConversionError.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import tflite

from edgelora.errors import ConversionError

IDENTIFIER = b"TFL3"
CUSTOM = "CUSTOM"
_LARGEST = 1 << 27
_MOST_AXES = 8
_NOT_OPTIONS = ("Init", "GetRootAs")
_TYPES: dict[str, Any] = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "FLOAT64": np.float64,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Quantization:
    """Real = scale·(code − zero), with one of each for the tensor or for every slice along `axis`."""

    scale: np.ndarray
    zero: np.ndarray
    axis: int

    def same_as(self, other: Quantization | None) -> bool:
        """Whether codes mean the same numbers under both."""
        return other is not None and np.array_equal(self.scale, other.scale) and np.array_equal(self.zero, other.zero)


@dataclass(frozen=True)
class Sparsity:
    """Where the stored values of a sparse tensor lie; see sparsity.py."""

    order: tuple[int, ...]
    blocks: tuple[int, ...]
    axes: tuple[tuple[int, np.ndarray, np.ndarray] | int, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph. `data` is None for what is computed; an open batch had no size in the source."""

    name: str
    shape: tuple[int, ...]
    open_batch: bool
    dtype: np.dtype
    data: np.ndarray | None
    quantization: Quantization | None
    sparsity: Sparsity | None

    @property
    def holds_codes(self) -> bool:
        """Whether its integers stand for real numbers."""
        return self.quantization is not None and self.dtype in (np.int8, np.uint8, np.int16)


@dataclass(frozen=True)
class Operator:
    """An operator: the name in the schema (or that of a custom one), tensors by index, -1 for an absent input."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    custom: bytes = b""


@dataclass(frozen=True)
class Graph:
    """The main subgraph of a file of `size` bytes, and their sha256 (hex)."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    size: int
    sha256: str = ""


def read_model(content: bytes | bytearray, where: str) -> Graph:
    """The main subgraph of a TFLite file's `content`; `where` names the file in errors.

    Constants and scales are views of `content`: where that is a bytearray, who writes to them writes the file.

    Raises:
        ConversionError: it is no TFLite file, is damaged, or holds tensors of a kind that is not read.
    """
    if content[4:8] != IDENTIFIER:
        raise ConversionError(f"{where}: not a TFLite file (its identifier is not {IDENTIFIER.decode()})")
    try:
        return _Reader(content).graph()
    except ConversionError as error:
        raise ConversionError(f"{where}: {error}") from error
    except (struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ConversionError(f"{where}: a damaged TFLite file ({error}); copy or convert it again") from error


class _Reader:
    """Reads one file: as many elements as it has bytes, in all, so that vectors that overlap cannot ask for more.

    A table that the file tells several times is read once.
    """

    def __init__(self, content: bytes | bytearray) -> None:
        self.content = content
        self.left = len(content)
        self.model = tflite.Model.GetRootAs(content, 0)

    def graph(self) -> Graph:
        if not self._many(self.model.SubgraphsLength()):
            raise ConversionError("the file has no subgraph")
        kinds = self._each(self.model.OperatorCodesLength(), self.model.OperatorCodes, self._kind)
        main: Any = self.model.Subgraphs(0)
        tensors = tuple(self._each(main.TensorsLength(), main.Tensors, self._tensor))
        count = len(tensors)
        operators = self._each(main.OperatorsLength(), main.Operators, lambda o: self._operator(o, kinds, count))
        inputs, outputs = (self._indices(v, 0, count) for v in (main.InputsAsNumpy(), main.OutputsAsNumpy()))
        if not inputs or not outputs:
            raise ConversionError("the graph has no inputs or no outputs")
        sha256 = hashlib.sha256(self.content).hexdigest()
        return Graph(tensors, tuple(operators), inputs, outputs, len(self.content), sha256)

    def _many(self, count: int) -> int:
        self.left -= count
        if count < 0 or self.left < 0:
            raise ConversionError("a damaged TFLite file (a vector is longer than the file); copy or convert it again")
        return count

    def _each(self, count: int, get: Callable[[int], Any], read: Callable[[Any], Any]) -> list[Any]:
        known: dict[int, Any] = {}
        found: list[Any] = []
        for table in map(get, range(self._many(count))):
            place = table._tab.Pos
            if place not in known:
                known[place] = read(table)
            found.append(known[place])
        return found

    def _numbers(self, vector: Any) -> np.ndarray:
        """A vector of numbers; flatbuffers has 0 for one that is absent."""
        found = np.zeros(0, np.int64) if isinstance(vector, int) else vector
        self._many(found.size)
        return found

    def _text(self, raw: bytes | None) -> str:
        found = raw or b""
        self._many(len(found))
        return found.decode("utf-8", errors="replace")

    def _indices(self, vector: Any, low: int, count: int) -> tuple[int, ...]:
        found = tuple(int(i) for i in self._numbers(vector))
        if any(not low <= i < count for i in found):
            raise ConversionError("a tensor is named that the graph does not have: the file is damaged")
        return found

    def _kind(self, code: Any) -> str:
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = _names(tflite.BuiltinOperator).get(builtin, f"operator {builtin}")
        return f"{CUSTOM}:{self._text(code.CustomCode())}" if name == CUSTOM else name

    def _operator(self, found: Any, kinds: list[str], count: int) -> Operator:
        inputs = self._indices(found.InputsAsNumpy(), -1, count)
        outputs = self._indices(found.OutputsAsNumpy(), 0, count)
        custom = self._numbers(found.CustomOptionsAsNumpy())
        return Operator(kinds[found.OpcodeIndex()], inputs, outputs, self._options(found), custom.tobytes())

    def _options(self, found: Any) -> dict[str, Any]:
        """The fields of the operator's option table, under the names of the schema."""
        table = found.BuiltinOptions()
        kind = getattr(tflite, _names(tflite.BuiltinOptions).get(found.BuiltinOptionsType(), ""), None)
        if table is None or kind is None:
            return {}
        options = kind()
        options.Init(table.Bytes, table.Pos)
        made: dict[str, Any] = {}
        for name, method in vars(kind).items():
            if name.endswith("AsNumpy"):
                made[name.removesuffix("AsNumpy")] = tuple(self._numbers(method(options)).tolist())
            elif _is_field(name, method):
                made[name] = method(options)
        return made

    def _tensor(self, found: Any) -> Tensor:
        name, shape = self._text(found.Name()), tuple(int(d) for d in self._numbers(found.ShapeAsNumpy()))
        signature = self._numbers(found.ShapeSignatureAsNumpy())
        kind = _names(tflite.TensorType).get(found.Type(), str(found.Type()))
        if kind not in _TYPES:
            raise ConversionError(f"tensor {name!r} is of type {kind}, which is not read")
        if len(shape) > _MOST_AXES or any(d < 0 for d in shape) or math.prod(shape) > _LARGEST:
            raise ConversionError(f"tensor {name!r} has the shape {list(shape)[:_MOST_AXES]}: the file is damaged")
        dtype, sparsity = np.dtype(_TYPES[kind]), self._sparsity(found.Sparsity())
        buffer = self.model.Buffers(found.Buffer()) if found.Buffer() < self.model.BuffersLength() else None
        held: Any = 0 if buffer is None else buffer.DataAsNumpy()
        raw = np.zeros(0, np.uint8) if isinstance(held, int) else held
        data = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False) if raw.size else None
        if data is not None and sparsity is None:
            if data.size != math.prod(shape):
                problem = f"tensor {name!r} holds {data.size} numbers and has the shape {list(shape)}"
                raise ConversionError(f"a damaged TFLite file ({problem}); copy or convert it again")
            data = data.reshape(shape)
        open_batch = bool(signature.size) and int(signature[0]) == -1
        return Tensor(name, shape, open_batch, dtype, data, self._quantization(found, name, shape), sparsity)

    def _quantization(self, found: Any, name: str, shape: tuple[int, ...]) -> Quantization | None:
        told = found.Quantization()
        scale = np.zeros(0) if told is None else self._numbers(told.ScaleAsNumpy()).astype(np.float32, copy=False)
        if told is None or not scale.size:
            return None
        zero = self._numbers(told.ZeroPointAsNumpy())
        zero = np.zeros(scale.size, np.int64) if not zero.size else np.broadcast_to(zero, scale.shape)
        axis = int(told.QuantizedDimension())
        fits = scale.size == 1 or (0 <= axis < len(shape) and shape[axis] == scale.size)
        if not fits or not np.isfinite(scale).all() or (scale <= 0).any():
            raise ConversionError(f"tensor {name!r} has scales that do not fit its shape or are no positive numbers")
        return Quantization(scale, np.array(zero), axis)

    def _sparsity(self, found: Any) -> Sparsity | None:
        if found is None:
            return None
        order = tuple(self._numbers(found.TraversalOrderAsNumpy()).tolist())
        blocks = tuple(self._numbers(found.BlockMapAsNumpy()).tolist())
        axes = tuple(self._each(found.DimMetadataLength(), found.DimMetadata, self._axis))
        return Sparsity(order, blocks, axes)

    def _axis(self, found: Any) -> tuple[int, np.ndarray, np.ndarray] | int:
        if found.Format() == tflite.DimensionType.DENSE:
            return int(found.DenseSize())
        kinds = (found.ArraySegmentsType(), found.ArrayIndicesType())
        tables = (found.ArraySegments(), found.ArrayIndices())
        vectors = [_vector(kind, table) for kind, table in zip(kinds, tables, strict=True)]
        segments, indices = map(self._numbers, vectors)
        return 0, segments.astype(np.int64), indices.astype(np.int64)


def _vector(kind: int, table: Any) -> Any:
    """The numbers of a union of vectors of three widths."""
    vector = getattr(tflite, _names(tflite.SparseIndexVector)[kind])()
    vector.Init(table.Bytes, table.Pos)
    return vector.ValuesAsNumpy()


def _is_field(name: str, method: Any) -> bool:
    code = getattr(method, "__code__", None)
    hidden = name.startswith(_NOT_OPTIONS) or name.endswith(("Length", "IsNone", "BufferHasIdentifier")) or "_" in name
    return code is not None and code.co_argcount == 1 and not hidden


@cache
def _names(enumeration: Any) -> dict[int, str]:
    return {number: name for name, number in vars(enumeration).items() if isinstance(number, int)}
