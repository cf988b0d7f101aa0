"""Recurrent nodes, Scans and Loops whose sizes, directions, lengths and options are drawn at random."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.cases.control_flow import TRUE, leaky, rounds, steps
from tests.gradients.cases.recurrent import recurrent
from tests.gradients.checker import check

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SMOOTH = ["Tanh", "Sigmoid", "Softsign", "Softplus", "ScaledTanh", "Affine"]
COUNTS = {"LSTM": 3, "GRU": 2, "RNN": 1}


@st.composite
def recurrent_nodes(draw) -> Case:
    op, direction = draw(st.sampled_from(list(COUNTS))), draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    sizes = tuple(draw(st.integers(1, high)) for high in (5, 3, 3, 3))
    flags = {key: draw(st.booleans()) for key in ("b", "h", *(("c", "p") if op == "LSTM" else ()))}
    attributes = {"direction": direction, "layout": draw(st.sampled_from([0, 0, 1]))}
    if draw(st.booleans()):
        attributes["clip"] = draw(st.floats(0.2, 2.0))
    if draw(st.booleans()):
        count = COUNTS[op] * (2 if direction == "bidirectional" else 1)
        attributes["activations"] = draw(st.lists(st.sampled_from(SMOOTH), min_size=count, max_size=count))
        numbers = st.lists(st.floats(0.3, 0.9), min_size=count, max_size=count)
        attributes |= {"activation_alpha": draw(numbers), "activation_beta": draw(numbers)}
    if op == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if op == "LSTM":
        attributes["input_forget"] = draw(st.integers(0, 1))
    time, batch = sizes[:2]
    given_lens = st.lists(st.integers(0, time), min_size=batch, max_size=batch).map(lambda n: np.array(n, np.int32))
    outputs = draw(st.integers(1, 3 if op == "LSTM" else 2))
    seeds = draw(st.sets(st.integers(0, outputs - 1), min_size=1))
    lens = draw(st.none() | given_lens)
    return recurrent(
        op, lens=lens, sizes=sizes, outputs=outputs, cotangents=tuple(sorted(seeds)), **flags, **attributes
    )


@given(recurrent_nodes(), st.booleans(), st.integers(0, 1000))
@few
def test_recurrent_nodes(case, symbolic, seed):
    check(case, symbolic, seed, directions=1)


@given(
    axis=st.integers(-3, 2),
    length=st.integers(1, 5),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    out_axis=st.integers(-3, 2),
    ways=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    symbolic=st.booleans(),
)
@few
def test_scans(axis, length, sizes, out_axis, ways, symbolic):
    shape = [*sizes]
    shape.insert(axis if axis >= 0 else axis + 3, length)
    how = {
        "num_scan_inputs": 1,
        "scan_input_axes": [axis],
        "scan_output_axes": [out_axis],
        "scan_input_directions": [ways[0]],
        "scan_output_directions": [ways[1]],
    }
    inner = axis if axis >= 0 else axis + 3
    bodies = {"body": steps(leaky, 1, [inner], outside=1)}
    case = Case("Scan", [sizes, tuple(shape), (sizes[1], sizes[1])], how, outputs=2, captured=1, bodies=bodies)
    check(case, symbolic, directions=1)


@given(st.integers(1, 6), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.booleans(), st.booleans())
@few
def test_loops(count, sizes, known, symbolic):
    def step(op, number, s, w):
        again = op.Less(op.ReduceSum(op.Mul(s, s), keepdims=0), 30.0)
        return again, op.Add(op.Sin(op.Mul(s, w)), s), op.Mul(s, w)

    case = Case("Loop", [np.array(count), TRUE, sizes, sizes], outputs=2, captured=1, computed=() if known else (0,),
                bodies={"body": rounds(step, outside=1)}, within={2: (0.5, 1.0), 3: (0.5, 2.0)})  # fmt: skip
    check(case, symbolic, directions=1)
