"""A TFLite graph on its way to ONNX: what stands for each tensor so far, and in which layout.

TFLite has the channels last and ONNX's convolutions have them second. A tensor of four axes is held in the layout in
which it was made; an operator asks for the one that it needs, so that a Transpose stands only where layouts meet.

Codes are real numbers between a QuantizeLinear and a DequantizeLinear (docs/decisions/0009). Integers that are none are
int64 throughout, as ONNX has its shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora.errors import ConversionError
from edgelora_tools.sources.tflite.model import Graph, Quantization, Tensor

FROM = "tflite.tensor"
TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)
_TIMES, _FLOOR = 64, 1 << 26  # sparse half precision, nine of ten zero, grows 40 times until it is a kernel in float32
_AS_IN_ONNX = {np.dtype(np.int32): np.int64, np.dtype(np.float16): np.float32, np.dtype(np.float64): np.float32}


@dataclass(frozen=True)
class Held:
    """What stands for a tensor, with its channels second or where TFLite has them."""

    value: ir.Value
    first: bool


class Translation:
    """The state of one translation. `batch` names the first axis of inputs and outputs, None where it is fixed."""

    def __init__(self, graph: Graph, op: OpBuilder, batch: str | None) -> None:
        self.graph, self.op, self.batch = graph, op, batch
        self.constants: dict[int, np.ndarray] = {}
        self._left = _TIMES * graph.size + _FLOOR
        self._held: dict[int, Held] = {}
        self._turned: dict[int, ir.Value] = {}
        self._frozen: dict[tuple[int, str], ir.Value] = {}

    def tensor(self, index: int) -> Tensor:
        """What the file tells of a tensor.

        Raises:
            ConversionError: the index is that of an absent input.
        """
        if index < 0:
            raise ConversionError("an input is absent that the operator cannot do without: the file is damaged")
        return self.graph.tensors[index]

    def rank(self, index: int) -> int:
        return len(self.tensor(index).shape)

    # --- constants

    def constant(self, index: int) -> np.ndarray | None:
        """The numbers of a constant, codes as what they stand for; None for what is computed."""
        if index in self.constants:
            return self.constants[index]
        tensor = self.tensor(index)
        if tensor.data is None or tensor.sparsity is not None:
            return None
        if tensor.holds_codes or (tensor.quantization is not None and tensor.dtype == np.int32):
            assert tensor.quantization is not None
            return dequantized(tensor.data, tensor.quantization)
        return tensor.data.astype(_AS_IN_ONNX.get(tensor.dtype, tensor.dtype))

    def numbers(self, index: int, what: str) -> list[int]:
        """A constant's integers, as axes, sizes and paddings are."""
        found = self.constant(index)
        if found is None:
            raise ConversionError(f"{what} ({self.tensor(index).name!r}) are computed; they must be a constant")
        return [int(i) for i in found.reshape(-1)]

    def frozen(self, index: int, name: str, perm: tuple[int, ...] | None = None, axis: int = 0) -> ir.Value:
        """A frozen weight under `name`, its axes in the order `perm`; codes stay codes.

        Scales, if there are several, lie along `axis`, as the file counts axes.

        Raises:
            ConversionError: it is computed, or has its scales along another axis.
        """
        if (index, name) in self._frozen:
            return self._frozen[index, name]
        tensor, array = self.tensor(index), self.constant(index)
        if array is None:
            raise ConversionError(f"weight {tensor.name!r} is computed; it must be a constant")
        unique = self._free(name)
        if tensor.holds_codes and index not in self.constants:
            assert tensor.data is not None and tensor.quantization is not None
            found = tensor.quantization
            if found.scale.size != 1 and found.axis != axis:
                raise ConversionError(f"weight {tensor.name!r} has scales along the axis {found.axis}, not {axis}")
            codes = np.ascontiguousarray(tensor.data if perm is None else tensor.data.transpose(perm))
            origin = q = self.initializer(codes, unique)
            place = axis if perm is None else perm.index(axis)
            made = self._decode(q, found, tensor.dtype, place - codes.ndim)
            made.shape, made.dtype = ir.Shape(codes.shape), ir.DataType.FLOAT
        else:
            real = np.ascontiguousarray(array if perm is None else array.transpose(perm))
            origin = made = self.initializer(real, unique)
        if name.endswith(".weight"):
            origin.meta[FROM] = index
        self._frozen[index, name] = made
        return made

    def initializer(self, array: np.ndarray, name: str) -> ir.Value:
        """A constant of the ONNX graph.

        Raises:
            ConversionError: the constants of the translation outgrow the file.
        """
        self._spend(array.nbytes)
        return self.op.builder.initializer(ir.tensor(array, name=name), qualify=False)

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ConversionError(f"its constants would be {_TIMES} times as large as the file: it is damaged")

    def _free(self, name: str) -> str:
        stem, dot, end = name.rpartition(".")
        unique, n = name, 1
        while unique in self.op.builder.graph.initializers:
            n += 1
            unique = f"{stem}_{n}{dot}{end}"
        return unique

    # --- tensors as values

    def is_first(self, index: int) -> bool:
        """Whether a tensor is held with its channels second."""
        return index in self._held and self._held[index].first

    def last(self, index: int) -> ir.Value:
        """The tensor in TFLite's layout."""
        array = None if index in self._held else self.constant(index)
        if array is not None:
            return self.initializer(array, self._free(f"constant.{index}"))
        held = self._find(index)
        return self._transposed(index, held.value, TO_LAST) if held.first else held.value

    def first(self, index: int) -> ir.Value:
        """The tensor, of four axes, with its channels second."""
        held = self._find(index)
        return held.value if held.first else self._transposed(index, held.value, TO_FIRST)

    def _find(self, index: int) -> Held:
        if index not in self._held:
            raise ConversionError(f"tensor {self.tensor(index).name!r} is read before anything makes it")
        return self._held[index]

    def _transposed(self, index: int, value: ir.Value, perm: tuple[int, ...]) -> ir.Value:
        if index not in self._turned:
            made = self.op.Transpose(value, perm=list(perm))
            made.shape, made.dtype = self.shape(index, first=perm is TO_FIRST), value.dtype
            self._turned[index] = made
        return self._turned[index]

    def shape(self, index: int, first: bool = False) -> ir.Shape:
        """The shape that the file tells, the first axis open where the batch is."""
        shape: list[int | str] = list(self.tensor(index).shape)
        if self.batch is not None and shape and shape[0] == 1:
            shape[0] = self.batch
        return ir.Shape([shape[i] for i in TO_FIRST] if first else shape)

    def put(self, index: int, value: ir.Value, first: bool = False, moved: int | None = None) -> None:
        """`value` is the tensor `index`: checked against the shape of the file, and rounded where that has codes.

        `moved` is a tensor whose codes it has, as what was moved without arithmetic: they are not rounded again.
        """
        tensor = self.tensor(index)
        self._compare(tensor, value, first)
        rounds = tensor.holds_codes
        if rounds and moved is not None and self.tensor(moved).quantization is not None:
            assert tensor.quantization is not None
            rounds = not tensor.quantization.same_as(self.tensor(moved).quantization)
        self._held[index] = Held(self.rounded(value, tensor) if rounds else value, first)

    def put_constant(self, index: int, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        """What `make` makes, float32 of `shape`, is the tensor `index`, which the file computes from constants alone.

        Raises:
            ConversionError: the file tells another shape, or the constants of the translation outgrow it.
        """
        if shape != self.tensor(index).shape:
            raise ConversionError(f"tensor {self.tensor(index).name!r} is {list(shape)}, not what the file says")
        self._spend(math.prod(shape) * np.dtype(np.float32).itemsize)
        self.constants[index] = make()

    def _compare(self, tensor: Tensor, value: ir.Value, first: bool) -> None:
        if value.shape is None or not value.shape.is_static() or self.batch is not None:
            return
        made = tuple(value.shape.numpy())
        made = tuple(made[i] for i in TO_LAST) if first and len(made) == 4 else made
        if made != tensor.shape:
            raise ConversionError(
                f"tensor {tensor.name!r} has the shape {list(tensor.shape)}, and its operator makes {list(made)}"
            )

    def rounded(self, value: ir.Value, tensor: Tensor, zero: float | None = None) -> ir.Value:
        """The numbers that the codes of `value` stand for; with `zero`, `value` is codes less that, to be rounded."""
        found = tensor.quantization
        assert found is not None
        if found.scale.size != 1:
            raise ConversionError(f"tensor {tensor.name!r}: activations with scales per channel are not read")
        scalars = self._scalars(found, tensor.dtype)
        unit = replace(found, scale=np.ones_like(found.scale), zero=np.full_like(found.zero, zero or 0))
        q = self.op.QuantizeLinear(value, *(scalars if zero is None else self._scalars(unit, tensor.dtype)))
        made = self.op.DequantizeLinear(q, *scalars)
        q.shape = made.shape = value.shape
        return made

    def _scalars(self, found: Quantization, dtype: np.dtype) -> tuple[ir.Value, ir.Value]:
        name = self._free("activation.scale")
        scale = self.op.builder.initializer(ir.tensor(found.scale.reshape(()), name=name), qualify=False)
        zero = ir.tensor(found.zero.reshape(()).astype(dtype), name=self._free("activation.zero"))
        return scale, self.op.builder.initializer(zero, qualify=False)

    def _decode(self, q: ir.Value, found: Quantization, dtype: np.dtype, axis: int) -> ir.Value:
        shape = () if found.scale.size == 1 else (-1,)
        scale = ir.tensor(found.scale.reshape(shape), name=f"{q.name}.scale")
        inputs = [q, self.op.builder.initializer(scale, qualify=False)]
        if found.zero.any():
            zero = ir.tensor(found.zero.reshape(shape).astype(dtype), name=f"{q.name}.zero")
            inputs.append(self.op.builder.initializer(zero, qualify=False))
        return self.op.DequantizeLinear(*inputs, axis=axis)

    def target(self, index: int) -> ir.Value:
        """The shape of a tensor for a Reshape: its first axis is whatever is left, where the batch is open."""
        shape = list(self.tensor(index).shape)
        if self.batch is not None and shape:
            shape[0] = -1
        return self.op.Constant(value=ir.tensor(np.array(shape, np.int64)))


def dequantized(codes: np.ndarray, found: Quantization) -> np.ndarray:
    """scale·(code − zero), in float32."""
    shape = [1] * codes.ndim
    if found.scale.size != 1:
        shape[found.axis] = -1
    elif not codes.ndim:
        shape = []
    centred = codes.astype(np.float64) - found.zero.reshape(shape)
    return (centred * found.scale.astype(np.float64).reshape(shape)).astype(np.float32)


def quantized(real: np.ndarray, found: Quantization, dtype: np.dtype) -> np.ndarray:
    """The codes nearest to `real`, as QuantizeLinear has them."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    scale, zero = float(found.scale[0]), int(found.zero[0])
    return np.clip(np.rint(real.astype(np.float32) / np.float32(scale)) + zero, low, high).astype(dtype)
