"""Tokens that an adapter puts before the caller's: a model behind them sees all, the caller only those of his own."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.shapes import dims, shaped

_END = 2**63 - 1


@dataclass(frozen=True)
class VirtualTokens:
    """How many there are, int64 `[1]`, and the mask of all tokens `[batch, all]`, None if the model takes none.

    `whole` is the name of the dimension of all tokens, `own` that of the caller's.
    """

    count: ir.Value
    mask: ir.Value | None
    whole: str
    own: str

    def behind(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """The caller's tokens of `x` `[batch, all, ...]`, in its place and under its name; any other value as it is."""
        if x.shape is None or len(x.shape) < 2 or dims(x)[1] != self.whole:
            return x
        y = shaped(op.Slice(x, self.count, [_END], [1]), [self.own if d == self.whole else d for d in dims(x)], x)
        y.name, x.name = x.name, f"{x.name}.{self.whole}"
        return y
