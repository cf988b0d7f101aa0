"""A recurrent node taken apart: what each direction reads and receives, and how its gradients go back together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.gradients.gates import Activation, activations_of
from edgelora_tools.gradients.nodes import operand
from edgelora_tools.gradients.shapes import annotate, dims, filled, flatten_rows, indicator, size_of


@dataclass(frozen=True)
class Direction:
    """What one direction of a recurrent node reads and receives; G gates, H hidden, I inputs.

    X `[time, batch, I]`, W `[G·H, I]`, R `[G·H, H]`, the biases `[G·H]`, Y and dY `[time, batch, H]`, the
    states before the first step and the cotangents of the last ones `[batch, H]`, peepholes `[3·H]`.
    What an optional input would give is None where it is absent, and so is a cotangent.
    """

    op: OpBuilder
    x: ir.Value
    w: ir.Value
    r: ir.Value
    wb: ir.Value | None
    rb: ir.Value | None
    h_first: ir.Value | None
    c_first: ir.Value | None
    p: ir.Value | None
    lens: ir.Value | None
    y: ir.Value
    dy_all: ir.Value | None
    last: Sequence[ir.Value | None]
    activations: Sequence[Activation]
    backwards: bool

    @cached_property
    def _steps(self) -> ir.Value:
        """The number of each step, `[time, 1]`."""
        op = self.op
        count = op.Squeeze(size_of(op, self.x, 0), [0])
        return op.Unsqueeze(op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1)), [1])

    @cached_property
    def live(self) -> ir.Value | None:
        """1 at the steps within a sequence, 0 at padded ones: `[time, batch, 1]`; None where none is padded."""
        if self.lens is None:
            return None
        op = self.op
        within = op.Less(self._steps, op.Cast(self.lens, to=ir.DataType.INT64))
        return op.Unsqueeze(indicator(op, within, self.x), [2])

    @cached_property
    def held(self) -> ir.Value | None:
        """1 at padded steps, where the states stay as they are."""
        return None if self.live is None else self.op.Sub(1.0, self.live)

    def within(self, factor: ir.Value) -> ir.Value:
        """`factor`, and 0 at padded steps."""
        return factor if self.live is None else self.op.Mul(factor, self.live)

    def kept(self, factor: ir.Value) -> ir.Value:
        """`factor`, and 1 at padded steps."""
        return factor if self.held is None else self.op.Add(self.within(factor), self.held)

    @cached_property
    def dy(self) -> ir.Value | None:
        """dY within the sequences: beyond them Y is 0, whatever was read."""
        return None if self.dy_all is None else self.within(self.dy_all)

    def last_cotangent(self, state: int) -> ir.Value:
        """The cotangent of the state after the last step; a sequence without steps gives zeros, whatever was read."""
        given, op = self.last[state] if state < len(self.last) else None, self.op
        if given is None:
            return self.zeros
        if self.lens is None:
            return given
        return op.Mul(given, op.Unsqueeze(indicator(op, op.Greater(self.lens, 0), given), [1]))

    @cached_property
    def zeros(self) -> ir.Value:
        """A state of zeros, `[batch, H]`."""
        op = self.op
        zeros = filled(op, 0.0, op.Concat(size_of(op, self.x, 1), size_of(op, self.r, 1), axis=0), self.x)
        zeros.shape = ir.Shape([dims(self.x)[1], dims(self.r)[1]])
        return zeros

    @cached_property
    def h_before(self) -> ir.Value:
        """The hidden state before each step, H₋₁ `[time, batch, H]`; anything at padded steps."""
        op = self.op
        first = op.Unsqueeze(self.h_first or self.zeros, [0])
        if not self.backwards:
            before = op.Concat(first, op.Slice(self.y, [0], [-1], [0]), axis=0)
        elif self.lens is None:
            before = op.Concat(op.Slice(self.y, [1], [2**62], [0]), first, axis=0)
        else:
            before = op.Concat(op.Slice(self.y, [1], [2**62], [0]), op.Unsqueeze(self.zeros, [0]), axis=0)
            if self.h_first is not None:  # beyond its sequence Y is 0
                ends = op.Equal(self._steps, op.Sub(op.Cast(self.lens, to=ir.DataType.INT64), 1))
                before = op.Add(before, op.Mul(op.Unsqueeze(indicator(op, ends, self.x), [2]), first))
        return annotate(before, self.y)

    @cached_property
    def x_rows(self) -> ir.Value:
        return flatten_rows(self.op, self.x)

    @cached_property
    def h_rows(self) -> ir.Value:
        return flatten_rows(self.op, self.h_before)

    def product(self, rows: ir.Value, weight: ir.Value, *added: ir.Value | None) -> ir.Value:
        """rows·weightᵀ plus what is there of `added`: rows `[time·batch, n]`, weight `[m, n]`."""
        present = [a for a in added if a is not None]
        return self.op.Gemm(rows, weight, *present, transB=1)

    def by_step(self, rows: ir.Value) -> ir.Value:
        """`[time·batch, n]` as `[time, batch, n]`."""
        op = self.op
        y = op.Reshape(rows, op.Concat(size_of(op, self.x, 0), size_of(op, self.x, 1), [-1], axis=0))
        y.shape = ir.Shape([*dims(self.x)[:2], dims(rows)[1]])
        return y

    def parts(self, of: ir.Value | None, count: int) -> Sequence[ir.Value | None]:
        """`of` split into `count` equal parts along its last axis."""
        if of is None or count == 1:
            return [of] * count
        return self.op.Split(of, num_outputs=count, axis=-1, _outputs=count)

    def bias(self) -> ir.Value | None:
        """Both biases together."""
        return None if self.wb is None else self.op.Add(self.wb, self.rb)


@dataclass(frozen=True)
class Cotangents:
    """What comes out of a direction's backward pass; the shapes are those of `Direction`.

    `gates` are the cotangents of X·Wᵀ, `recurrent` those of H₋₁·Rᵀ; dR is given where R reads something else.
    """

    gates: ir.Value
    recurrent: ir.Value
    dh: ir.Value
    dc: ir.Value | None = None
    dr: Callable[[], ir.Value] | None = None
    dp: Callable[[], ir.Value] | None = None


def take_apart(
    op: OpBuilder,
    node: ir.Node,
    dys: Sequence[ir.Value | None],
    default: Sequence[str],
    clipped: Sequence[bool],
) -> list[Direction]:
    """The directions of a recurrent node.

    Raises:
        ValueError: activations that the rule does not cover.
    """
    direction = node.attributes.get_string("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    batch_first = bool(node.attributes.get_int("layout", 0))
    activations = activations_of(node, default, count, clipped)
    x, w, r, b, lens, h, c, p = (operand(node, i) for i in range(8))
    assert x is not None and w is not None and r is not None
    y = _all_states(node, x, r, count, batch_first)
    dy, *dlast = dys
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])

    def each(value: ir.Value | None, kind: str) -> Sequence[ir.Value | None]:
        if value is None:
            return [None] * count
        if batch_first and kind in ("states", "all"):
            value = op.Transpose(value, perm=[1, 0, 2] if kind == "states" else [1, 2, 0, 3])
        axis = 1 if kind == "all" else 0
        split = [value] if count == 1 else op.Split(value, num_outputs=count, axis=axis, _outputs=count)
        return [op.Squeeze(v, [axis]) for v in split]

    def halves(d: ir.Value | None) -> Sequence[ir.Value | None]:
        return (None, None) if d is None else op.Split(d, num_outputs=2, axis=0, _outputs=2)

    ws, rs, bs, ps = (each(value, "weights") for value in (w, r, b, p))
    hs, cs, *lasts = (each(value, "states") for value in (h, c, *dlast))
    ys, dy_alls = each(y, "all"), each(dy, "all")
    found = []
    for d in range(count):
        wd, rd, yd = ws[d], rs[d], ys[d]
        assert wd is not None and rd is not None and yd is not None
        wb, rb = halves(bs[d])
        last = [of[d] for of in lasts]
        backwards = d == 1 or direction == "reverse"
        found.append(
            Direction(
                op, x, wd, rd, wb, rb, hs[d], cs[d], ps[d], lens, yd, dy_alls[d], last, activations[d], backwards
            )
        )  # fmt: skip
    return found


def _all_states(node: ir.Node, x: ir.Value, r: ir.Value, directions: int, batch_first: bool) -> ir.Value:
    """Y, every hidden state; the node is made to return it if it did not."""
    y = node.outputs[0]
    if not y.name:
        y.name = f"{node.name}.Y"
    if y.shape is None or y.dtype is None:
        first, second, _ = dims(x)
        hidden = node.attributes.get_int("hidden_size", None) or dims(r)[2]
        y.shape = ir.Shape([first, second, directions, hidden] if batch_first else [first, directions, second, hidden])
        y.type = x.type
    return y


def put_together(
    op: OpBuilder, node: ir.Node, parts: Callable[[], list[tuple[Direction, Cotangents]]]
) -> tuple[Callable[[], ir.Value] | None, ...]:
    """One thunk for each of X, W, R, B, sequence_lens, initial_h, initial_c, P, from every direction's cotangents.

    dX = dA·W, summed over the directions
    dW = Σ dAᵀ·X and dR = Σ dAᵀ·H₋₁, both over steps and batch in one product
    dB = Σ dA, for the bias of W and for that of R
    """
    x, w, r, b, _, h, c, p = (operand(node, i) for i in range(8))
    batch_first = bool(node.attributes.get_int("layout", 0))
    parts = cache(parts)

    def stacked(pick: Callable[[Direction, Cotangents], ir.Value], like: ir.Value | None, states: bool = False):
        assert like is not None
        each = [op.Unsqueeze(pick(d, made), [0]) for d, made in parts()]
        whole = each[0] if len(each) == 1 else op.Concat(*each, axis=0)
        return annotate(op.Transpose(whole, perm=[1, 0, 2]) if states and batch_first else whole, like)

    def dx() -> ir.Value:
        assert x is not None
        each = [op.MatMul(made.gates, d.w) for d, made in parts()]
        whole = each[0] if len(each) == 1 else op.Add(*each)
        return annotate(op.Transpose(whole, perm=[1, 0, 2]) if batch_first else whole, x)

    def dw(d: Direction, made: Cotangents) -> ir.Value:
        return op.Gemm(flatten_rows(op, made.gates), d.x_rows, transA=1)

    def dr(d: Direction, made: Cotangents) -> ir.Value:
        return made.dr() if made.dr else op.Gemm(flatten_rows(op, made.recurrent), d.h_rows, transA=1)

    def db(_: Direction, made: Cotangents) -> ir.Value:
        sums = {v: op.ReduceSum(v, [0, 1], keepdims=0) for v in dict.fromkeys((made.gates, made.recurrent))}
        return op.Concat(sums[made.gates], sums[made.recurrent], axis=0)

    def dc(_: Direction, made: Cotangents) -> ir.Value:
        assert made.dc is not None
        return made.dc

    def dp(_: Direction, made: Cotangents) -> ir.Value:
        assert made.dp is not None
        return made.dp()

    return (
        dx,
        lambda: stacked(dw, w),
        lambda: stacked(dr, r),
        lambda: stacked(db, b),
        None,
        lambda: stacked(lambda _, made: made.dh, h, states=True),
        lambda: stacked(dc, c, states=True),
        lambda: stacked(dp, p),
    )
