"""How each product of a base may be computed, from the fastest or smallest to the most exact, and what each way errs.

An error is local: a product's output on a sample against the real one. The search for a plan goes by it, or by how far
the gradients turn, where that is known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgelora_tools.builder import GraphBuilder
from edgelora_tools.composites.block_product import Blocks
from edgelora_tools.composites.quantized_product import FINE, TOP, ZERO
from edgelora_tools.composites.vocabulary_product import token_codes
from edgelora_tools.lowering import Lowered, lower_nodes
from edgelora_tools.own_codes import own_codes
from edgelora_tools.passes.free_names import free_names
from edgelora_tools.passes.quantize import Choice, Product, Rung, product_codes, products
from edgelora_tools.passes.tidy import tidy
from edgelora_tools.rounding import BLOCK, round_blocks, round_for
from edgelora_tools.runner import open_session

Feeds = dict[str, NDArray]

RUNGS: dict[str, tuple[Rung, ...]] = {
    "int8": (
        Rung.TENSOR_7,
        Rung.TENSOR_8,
        Rung.ROWS_7,
        Rung.ROWS_8,
        Rung.CHANNELS_8,
        Rung.DIGITS_8,
        Rung.BLOCKS_8,
        Rung.WEIGHTS_8,
    ),
    "int4": (Rung.OWN_BLOCKS_4, Rung.OWN_WEIGHTS_4, Rung.BLOCKS_4, Rung.BLOCKS_8, Rung.WEIGHTS_8),
}
"""The rungs of a precision."""

_ROWS = 512  # of a sample, that errors are measured on
_FEW_NEGATIVE = 32  # the code of 0 in rows that are nearly all positive
_GAIN = 0.8  # evened channels cost a pass over memory: they must bring this
_WORTH = {Rung.CHANNELS_8: 1.0, Rung.DIGITS_8: 0.7}  # of the error before; a second digit costs another product
_APART = 16  # channels in real numbers: a product with so few inputs takes hardly longer than one with fewer


@dataclass(frozen=True)
class Candidate:
    """A choice, its error, and what the search goes by."""

    choice: Choice
    error: float
    turn: float


Ladder = list[Candidate]
Use = tuple[NDArray[np.float32], NDArray[np.float32], Ladder]
"""Rows of one input of a weight, the matrix, and what is best for them."""


def ladders(
    base: ir.Model,
    sample: Feeds,
    meanings: Mapping[str, Lowered],
    rungs: Sequence[Rung],
    kept: Collection[str] = (),
    heads: Collection[str] = (),
) -> dict[str, Ladder]:
    """For each weight but those `kept` real, its candidates, on the inputs of all its products.

    Of `heads`, which make logits, there is one: codes by tokens of the vocabulary.
    There are none for a matrix that is also turned: what are inputs to one product are outputs of the other.
    """
    by_input: dict[str, list[Product]] = {}
    every = [product for product in products(base) if product.weight.name not in kept]
    ways = {weight: {p.turned for p in every if p.weight is weight} for weight in {p.weight for p in every}}
    for product in every:
        if len(ways[product.weight]) > 1:
            continue
        x = product.node.inputs[0]
        assert x is not None
        by_input.setdefault(str(x.name), []).append(product)
    found: dict[str, list[Use]] = {}
    for name, x in activations(base, list(by_input), sample, meanings).items():
        rows = x.reshape(-1, x.shape[-1])
        rows = rows[:: max(1, len(rows) // _ROWS)].astype(np.float32)
        group = {str(product.weight.name): product.matrix for product in by_input[name]}
        for head in group.keys() & set(heads):
            w, choice = group.pop(head), Choice(Rung.TOKENS_8)
            found.setdefault(head, []).append((rows, w, [Candidate(choice, _error(rows, w, choice), 0.0)]))
        shared = _integer_ladder(rows, list(group.values()), [r for r in rungs if group and not r.in_blocks])
        for weight, w in group.items():
            ladder = shared + _block_ladder(rows, w, [r for r in rungs if r.in_blocks])
            found.setdefault(weight, []).append((rows, w, ladder))
    both = {str(weight.name): Ladder() for weight, turned in ways.items() if len(turned) > 1}
    return both | {weight: _of_all(uses) for weight, uses in found.items()}


def weighed(ladder: Ladder, damage: float) -> Ladder:
    """The ladder with the turn of the gradients: `damage` by the first rung, and it grows as the errors' squares."""
    first = max((c.error for c in ladder[:1]), default=0.0) or 1e-12
    return [replace(c, turn=damage * (c.error / first) ** 2) for c in ladder]


def _of_all(uses: Sequence[Use]) -> Ladder:
    """Of a weight that several inputs meet, at every rung that of their choices whose largest error is the least."""
    if len(uses) == 1:
        return uses[0][2]
    ladder = Ladder()
    for candidates in zip(*(of_one for *_, of_one in uses), strict=True):
        errors = [max(_error(rows, w, c.choice) for rows, w, _ in uses) for c in candidates]
        best = int(np.argmin(errors))
        choice = candidates[best].choice
        ladder.append(Candidate(choice, errors[best], 0.0 if choice.rung.own else errors[best]))
    return ladder


def _error(rows: NDArray[np.float32], w: NDArray[np.float32], choice: Choice) -> float:
    """Of a product's output."""
    if choice.rung is Rung.TOKENS_8:
        codes, scale = token_codes(w)
        return _relative(rows @ codes.T.astype(np.float32) * scale, rows @ w)
    if choice.blocks is None:
        seen, made = _seen(rows, choice), _made(w, choice)
    else:
        seen, made = rounded_in_blocks(rows) if choice.rung.rounds else rows, choice.blocks.real(len(w))
    return _relative(seen @ made, rows @ w)


def _few(rows: NDArray[np.float32]) -> float:
    return float(np.abs(rows).max(1).mean()) * _FEW_NEGATIVE / (TOP - _FEW_NEGATIVE)


def _even(rows: NDArray[np.float32], matrices: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """t = √(max|W| / max|X|), channel by channel (SmoothQuant, α = ½), the same for products that share X."""
    x = np.maximum(np.abs(rows).max(0, initial=0.0), 1e-5)
    w = np.maximum(np.max([np.abs(w).max(1) for w in matrices], 0), 1e-5)
    return np.sqrt(w / x).astype(np.float32)


def _integer_ladder(
    rows: NDArray[np.float32], matrices: Sequence[NDArray[np.float32]], rungs: Sequence[Rung]
) -> Ladder:
    """The best choice at every rung, the same for all products of an input: they share its codes."""
    if not rungs:
        return []
    even, apart = _even(rows, matrices), np.ones(rows.shape[1], np.float32)
    apart[np.argsort(-np.abs(rows).max(0, initial=0.0))[: min(_APART, len(apart) // 8)]] = 0
    middle = _FEW_NEGATIVE if -rows.min(initial=0.0) < _few(rows) else ZERO
    outputs = [rows @ w for w in matrices]

    def measured(choice: Choice) -> Candidate:
        seen = _seen(rows, choice)
        errors = [_relative(seen @ _made(w, choice), y) for w, y in zip(matrices, outputs, strict=True)]
        return Candidate(choice, max(errors), max(errors))

    found: Ladder = []
    for rung in rungs:
        middles = dict.fromkeys((ZERO, middle)) if rung.by_rows else (ZERO,)
        scales = (apart, apart * even) if rung is Rung.CHANNELS_8 else (None,)
        best = min((measured(Choice(rung, t, m)) for t in scales for m in middles), key=lambda c: c.error)
        if rung is not Rung.CHANNELS_8:
            evened = measured(Choice(rung, even, ZERO))
            best = evened if evened.error < _GAIN * best.error else best
        pays = rung not in _WORTH or not found or best.error < _WORTH[rung] * found[-1].error
        found.append(best if pays else found[-1])
    return found


def _block_ladder(rows: NDArray[np.float32], w: NDArray[np.float32], rungs: Sequence[Rung]) -> Ladder:
    """Where a matrix was made of codes, they are taken. Else those of 4 bits are rounded for these inputs; those of 8
    are near enough."""
    own = own_codes(w) if any(rung.own for rung in rungs) else None
    y, found, made = rows @ w, Ladder(), dict[int, Blocks]()
    for rung in (rung for rung in rungs if rung.own == (own is not None)):
        if rung.bits not in made:
            made[rung.bits] = own or (round_for(w, rows, rung.bits) if rung.bits < 8 else round_blocks(w, rung.bits))
        seen = rounded_in_blocks(rows) if rung.rounds else rows
        error = _relative(seen @ made[rung.bits].real(len(w)), y)
        found.append(Candidate(Choice(rung, blocks=made[rung.bits]), error, 0.0 if rung.own else error))
    return found


def _seen(rows: NDArray[np.float32], choice: Choice) -> NDArray[np.float32]:
    """What `_made` is multiplied by."""
    if choice.even is None:
        return rounded(rows, choice)
    return np.where(choice.even == 0, rows, rounded(rows * choice.even, choice))


def _made(w: NDArray[np.float32], choice: Choice) -> NDArray[np.float32]:
    """Wq∘s: what evened inputs are multiplied by, and of channels apart W itself."""
    codes, scale = product_codes(w, choice)
    made = codes.astype(np.float32) * scale
    return made if choice.even is None else np.where(choice.even[:, None] == 0, w, made)


def rounded(x: NDArray[np.float32], choice: Choice) -> NDArray[np.float32]:
    """What the codes of X `[rows, in]` stand for, as the composite makes them."""
    if not choice.rung.by_rows:
        low, high = min(float(x.min(initial=0.0)), 0.0), max(float(x.max(initial=0.0)), 0.0)
        step = (high - low) / TOP or 1.0
        zero = np.rint(-low / step)
        return ((np.clip(np.rint(x / step) + zero, 0, TOP) - zero) * step).astype(np.float32)
    up = TOP - choice.middle
    highest, lowest = x.max(1, keepdims=True, initial=0.0), x.min(1, keepdims=True, initial=0.0)
    rho = np.maximum(np.maximum(highest, lowest * (-up / choice.middle)), 1e-30)
    whole = x / rho * up
    codes = np.clip(np.rint(whole), -choice.middle, up)
    if choice.rung.digits > 1:
        codes += np.rint((whole - codes) * FINE) / FINE
    return (codes / up * rho).astype(np.float32)


def rounded_in_blocks(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """X `[rows, in]` with each block of a row in steps of 1/127 of its absolute maximum, as MatMulNBits may take it."""
    blocks = np.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK))).reshape(len(x), -1, BLOCK)
    step = np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-30) / 127
    return (np.rint(blocks / step) * step).reshape(len(x), -1)[:, : x.shape[1]].astype(np.float32)


def _relative(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))


def activations(
    base: ir.Model, names: Sequence[str], sample: Feeds, meanings: Mapping[str, Lowered]
) -> dict[str, NDArray]:
    """The values of these names in the base, run on `sample`."""
    model = base.clone()
    by_name = {str(y.name): y for node in model.graph for y in node.outputs}
    by_name |= {str(x.name): x for x in model.graph.inputs}
    model.graph.outputs[:] = [by_name[name] for name in names if name not in sample]
    lower_nodes(model.graph, GraphBuilder(free_names(model.graph)).op, meanings)
    tidy(model)
    given = {name: sample[name] for name in names if name in sample}
    if not model.graph.outputs:
        return given
    with open_session(model) as session:
        wanted = [y.name for y in session.get_outputs()]
        taken = {x.name for x in session.get_inputs()}
        values = session.run(wanted, {name: x for name, x in sample.items() if name in taken})
        return given | dict(zip((n for n in names if n not in sample), map(np.asarray, values), strict=True))
