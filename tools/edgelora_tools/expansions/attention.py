"""ONNX Runtime's attention operators as products, masks and Softmax.

A projection inside the operator becomes one MatMul on the packed weight: one insertion point for queries, keys
and values together.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder

from edgelora_tools.expansions.registry import called, expansion, is_read, uncovered
from edgelora_tools.expansions.rotary import turned
from edgelora_tools.gradients.nodes import operand
from edgelora_tools.gradients.shapes import dims, rank

_FORBIDDEN = -1e30  # finite: a row in which everything is forbidden must not become NaN
_FILTER = -10000.0


@expansion("Attention")
def attention(op: OpBuilder, node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Y = softmax(c·Q·Kᵀ + M)·V by head, [Q K V] = X·W + B; then the cache [K V] with what came before it.

    Inputs: X `[batch, n, in]`, W, B, lengths or mask, past `[2, batch, heads, past, size]`, attention bias.
    """
    x, w, b, mask, past, bias = (operand(node, i) for i in range(6))
    assert x is not None
    if operand(node, 6) is not None or node.attributes.get_int("past_present_share_buffer", 0):
        raise uncovered("shares a buffer between its caches")
    if node.attributes.get_int("do_rotary", 0):
        raise uncovered("rotates queries and keys")
    heads = node.attributes["num_heads"].as_int()
    packed = called(op.MatMul(x, w), f"{node.name}.query_key_value")
    packed = packed if b is None else op.Add(packed, b)
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes", ()))
    parts = op.Split(packed, sizes, axis=-1, _outputs=3) if sizes else op.Split(
        packed, axis=-1, num_outputs=3, _outputs=3
    )  # fmt: skip
    q, k, v = (_by_head(op, part, heads) for part in parts)
    present = None
    if past is not None:
        k, v = (op.Concat(op.Gather(past, i), new, axis=2) for i, new in enumerate((k, v)))
    if is_read(node, 1):
        present = op.Concat(op.Unsqueeze(k, [0]), op.Unsqueeze(v, [0]), axis=0)
    value = node.attributes.get_float("mask_filter_value", _FILTER)
    terms = [bias, _causal(op, q, k) if node.attributes.get_int("unidirectional", 0) else None]
    if mask is not None:
        terms.append(_padding(op, mask, k, value))
    return _joined(op, _attend(op, _scaled(op, node, q), k, v, terms)), present


@expansion("MultiHeadAttention")
def multi_head_attention(op: OpBuilder, node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Y = softmax(c·Q·Kᵀ + M)·V by head; then the caches of K and V with what came before them.

    Inputs: Q, K, V as `[batch, n, heads·size]`, or K and V by head; a bias for [Q K V]; lengths or mask of the
    keys; attention bias; past K and V by head.
    """
    query, key, value, b, mask, bias, past_key, past_value = (operand(node, i) for i in range(8))
    if query is None or key is None or value is None:
        raise uncovered("has queries, keys and values in one tensor")
    if operand(node, 8) is not None or operand(node, 9) is not None:
        raise uncovered("shares a buffer between its caches")
    if is_read(node, 3):
        raise uncovered("is asked for its probabilities")
    heads = node.attributes["num_heads"].as_int()
    if past_key is not None and (len(node.outputs) < 3 or not node.outputs[1].name):
        raise uncovered("has a past and does not return it: the kernel then does not read it")
    parts = (None, None, None) if b is None else _bias_parts(op, b, query)
    q, k, v = (
        x if rank(x) == 4 else _by_head(op, x if part is None else op.Add(x, part), heads)
        for x, part in zip((query, key, value), parts, strict=True)
    )
    if past_key is not None:
        k, v = op.Concat(past_key, k, axis=2), op.Concat(past_value, v, axis=2)
    filtered = node.attributes.get_float("mask_filter_value", _FILTER)
    terms = [bias, _causal(op, q, k) if node.attributes.get_int("unidirectional", 0) else None]
    if mask is not None:
        terms.append(_padding(op, mask, k, filtered))
    return _joined(op, _attend(op, _scaled(op, node, q), k, v, terms)), k, v


def _bias_parts(op: OpBuilder, b: ir.Value, query: ir.Value) -> Sequence[ir.Value]:
    """The parts of the bias for Q, K and V, of which V may have a width of its own."""
    total, width = dims(b)[0], dims(query)[-1]
    if isinstance(total, int) and isinstance(width, int):
        return op.Split(b, [width, width, total - 2 * width], axis=0, _outputs=3)
    size = op.Shape(query, start=2, end=3)
    rest = op.Sub(op.Shape(b), op.Mul(size, 2))
    return op.Split(b, op.Concat(size, size, rest, axis=0), axis=0, _outputs=3)


@expansion("GroupQueryAttention")
def group_query_attention(op: OpBuilder, node: ir.Node) -> tuple[ir.Value | None, ...]:
    """Y = softmax(c·Q·Kᵀ + M)·V, a head of K and V for a group of heads of Q; then the caches of K and V.

    A query sees the keys up to its own position (all of them if `causal` is 0), the last `local_window_size` of
    them, and none beyond the row's length, `seqlens_k` + 1. A soft cap b makes c·Q·Kᵀ = b·tanh(c·Q·Kᵀ/b). A smooth
    softmax has one more term in its denominator: exp(sink), or exp(0).

    Inputs: Q, K, V as `[batch, n, heads·size]` or packed in the first; past K and V by head; lengths less one
    `[batch]`; the greatest length; cosines and sines `[positions, size/2]`; –; attention bias; sinks `[heads]`.
    """
    attributes = node.attributes
    query, key, value, past_key, past_value, last, total, cos, sin, positions, bias, sink = (
        operand(node, i) for i in range(12)
    )
    assert query is not None and last is not None and total is not None
    if any(operand(node, i) is not None for i in range(12, 17)) or is_read(node, 3):
        raise uncovered("has normalized queries, a quantized cache, padded chunks or an output of its scores")
    if attributes.get_int("sliding_window_cache", 0):
        raise uncovered("has a cache of the window alone")
    rotary = attributes.get_int("do_rotary", 0)
    if rotary and positions is not None:
        raise uncovered("rotates by positions of its own")
    heads, key_heads = attributes["num_heads"].as_int(), attributes["kv_num_heads"].as_int()
    if key is None:
        packed = op.Reshape(query, [0, 0, heads + 2 * key_heads, -1])
        parts = op.Split(packed, [heads, key_heads, key_heads], axis=2, _outputs=3)
        q, k, v = (op.Transpose(part, perm=[0, 2, 1, 3]) for part in parts)
    else:
        q, k, v = _by_head(op, query, heads), _by_head(op, key, key_heads), _by_head(op, value, key_heads)

    lengths = op.Reshape(op.Cast(op.Add(last, 1), to=ir.DataType.INT64), [-1, 1])
    n = op.Shape(q, start=2, end=3)
    whole = op.Reshape(op.Cast(total, to=ir.DataType.INT64), [1])
    before = op.Constant(value=ir.tensor([[0]], dtype=ir.DataType.INT64))
    if past_key is not None:
        continued = op.Cast(op.Not(op.Equal(n, whole)), to=ir.DataType.INT64)
        before = op.Mul(op.Sub(lengths, n), continued)
    rows = op.Add(before, _counted(op, n))  # [batch, n]: the position of each query
    if rotary:
        tables = [op.Unsqueeze(op.Gather(table, rows), [1]) for table in (cos, sin)]
        width = dims(cos)[1] if cos is not None else None
        if not isinstance(width, int):
            raise uncovered("has tables of unknown width")
        partial = 0 if dims(q)[-1] == 2 * width else 2 * width
        interleaved = bool(attributes.get_int("rotary_interleaved", 0))
        q, k = (turned(op, x, *tables, width=partial, interleaved=interleaved) for x in (q, k))
    if past_key is not None and past_value is not None:
        k, v = (_continued(op, past, x, before, whole) for past, x in ((past_key, k), (past_value, v)))
    columns = op.Unsqueeze(_counted(op, op.Shape(k, start=2, end=3)), [0, 1, 2])
    present = k, v
    at = op.Unsqueeze(rows, [1, 3])
    seen = op.Less(columns, op.Unsqueeze(lengths, [1, 2]))
    if past_key is not None and is_read(node, 1):  # what lies beyond a row's length is 0
        filled = op.Cast(op.Transpose(seen, perm=[0, 1, 3, 2]), to=ir.DataType.FLOAT)
        present = op.Mul(k, filled), op.Mul(v, filled)
    if attributes.get_int("causal", 1):
        seen = op.And(seen, op.LessOrEqual(columns, at))
    window = attributes.get_int("local_window_size", -1)
    if window > 0:
        seen = op.And(seen, op.Greater(columns, op.Sub(at, window)))
    hidden = op.Mul(op.Cast(op.Not(seen), to=ir.DataType.FLOAT), _FORBIDDEN)
    if bias is not None:
        bias = op.Slice(bias, [0], op.Shape(k, start=2, end=3), [3])
    if sink is None and attributes.get_int("smooth_softmax", 0) == 1:
        sink = op.Constant(value=ir.tensor([0.0] * heads, dtype=ir.DataType.FLOAT))
    cap = attributes.get_float("softcap", 0.0)
    if heads != key_heads:
        k, v = (_for_groups(op, x, heads // key_heads) for x in (k, v))
    y = _attend(op, _scaled(op, node, q), k, v, [bias, hidden], cap, sink)
    return _joined(op, y), *present


def _continued(op: OpBuilder, past: ir.Value, new: ir.Value, before: ir.Value, whole: ir.Value) -> ir.Value:
    """`[batch, heads, max(past, whole), size]`: in each row `before` elements of the past, then the new ones."""
    room = op.Shape(past, start=2, end=3)
    both = op.Transpose(op.Concat(past, new, axis=2), perm=[0, 2, 1, 3])
    j = op.Unsqueeze(_counted(op, op.Max(room, whole)), [0])
    since = op.Min(op.Sub(j, before), op.Sub(op.Shape(new, start=2, end=3), 1))
    old = op.Cast(op.Less(j, before), to=ir.DataType.INT64)
    at = op.Add(op.Mul(j, old), op.Mul(op.Add(since, room), op.Sub(1, old)))
    batch = op.Shape(new, start=0, end=1)
    at = op.Expand(at, op.Concat(batch, [1], axis=0))
    made = op.Transpose(op.GatherND(both, op.Unsqueeze(at, [2]), batch_dims=1), perm=[0, 2, 1, 3])
    made.shape = ir.Shape([None] * 4)
    return made


def _for_groups(op: OpBuilder, x: ir.Value, group: int) -> ir.Value:
    """`[batch, heads, n, size]`, each head repeated for its group of queries' heads."""
    shape = op.Shape(x)
    split = [op.Slice(shape, [i], [i + 1]) for i in range(4)]
    apart = op.Expand(op.Unsqueeze(x, [2]), op.Concat(*split[:2], [group], *split[2:], axis=0))
    return op.Reshape(apart, op.Concat(split[0], op.Mul(split[1], group), *split[2:], axis=0))


def _attend(
    op: OpBuilder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    terms: Sequence[ir.Value | None],
    cap: float = 0.0,
    sink: ir.Value | None = None,
) -> ir.Value:
    """softmax(Q·Kᵀ + terms)·V by head, Q scaled already."""
    s = op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2]))
    if cap:
        s = op.Mul(op.Tanh(op.Mul(s, 1.0 / cap)), cap)
    for term in terms:
        s = s if term is None else op.Add(s, term)
    if sink is None:
        return op.MatMul(op.Softmax(s, axis=-1), v)
    size = op.Concat(op.Shape(s, start=0, end=3), [1], axis=0)
    column = op.Expand(op.Reshape(sink, [1, -1, 1, 1]), size)
    p = op.Softmax(op.Concat(s, column, axis=3), axis=-1)
    return op.MatMul(op.Slice(p, [0], [-1], [3]), v)


def _scaled(op: OpBuilder, node: ir.Node, q: ir.Value) -> ir.Value:
    """c·Q; c is 1/√(head size) unless given."""
    scale = node.attributes.get_float("scale", 0.0)
    size = dims(q)[-1] if q.shape is not None else None
    if scale or isinstance(size, int):
        return op.Mul(q, scale or float(size) ** -0.5)  # pyright: ignore[reportArgumentType]
    return op.Div(q, op.Sqrt(op.Cast(op.Shape(q, start=3, end=4), to=ir.DataType.FLOAT)))


def _padding(op: OpBuilder, mask: ir.Value, k: ir.Value, value: float) -> ir.Value:
    """`value` where a key is padding, else 0, as a term of the scores `[batch, heads, queries, keys]`.

    The mask is 1 and 0 over `[batch, keys]` or `[batch, queries, keys]`, or each row's end `[batch]`, or all
    rows' ends and then all rows' starts `[2·batch]`.
    """
    if rank(mask) == 1:
        j = op.Unsqueeze(_counted(op, op.Shape(k, start=2, end=3)), [0])
        batch = op.Shape(k, start=0, end=1)
        given = op.Cast(mask, to=ir.DataType.INT64)
        zeros = op.Expand(op.Constant(value_ints=[0]), batch)
        ends = op.Slice(given, [0], batch, [0])
        starts = op.Slice(op.Concat(given, zeros, axis=0), batch, op.Mul(batch, 2), [0])
        kept = op.And(op.Less(j, op.Unsqueeze(ends, [1])), op.GreaterOrEqual(j, op.Unsqueeze(starts, [1])))
    elif rank(mask) <= 3:
        kept = op.Cast(mask, to=ir.DataType.BOOL)
    else:
        raise uncovered(f"has a mask of {rank(mask)} axes")
    term = op.Mul(op.Cast(op.Not(kept), to=ir.DataType.FLOAT), value)
    return op.Unsqueeze(term, [1] if rank(mask) == 3 else [1, 2])


def _causal(op: OpBuilder, q: ir.Value, k: ir.Value) -> ir.Value:
    """Forbids the keys after each query, the last of which belongs to the last query: `[queries, keys]`."""
    rows, columns = op.Shape(q, start=2, end=3), op.Shape(k, start=2, end=3)
    at = op.Add(_counted(op, rows), op.Sub(columns, rows))
    later = op.Greater(op.Unsqueeze(_counted(op, columns), [0]), op.Unsqueeze(at, [1]))
    return op.Mul(op.Cast(later, to=ir.DataType.FLOAT), _FORBIDDEN)


def _counted(op: OpBuilder, n: ir.Value) -> ir.Value:
    """0, 1, … n − 1, n being `[1]`."""
    return op.Range(op.Constant(value_int=0), op.Squeeze(n, [0]), op.Constant(value_int=1))


def _by_head(op: OpBuilder, x: ir.Value | None, heads: int) -> ir.Value:
    """`[batch, n, heads·size]` as `[batch, heads, n, size]`."""
    return op.Transpose(op.Reshape(x, [0, 0, heads, -1]), perm=[0, 2, 1, 3])


def _joined(op: OpBuilder, y: ir.Value) -> ir.Value:
    """The inverse of `_by_head`."""
    return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])
