"""Elementwise operators and activations of shapes, broadcasts and attributes drawn at random."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.drawing import axis_of, broadcast, few, shapes, try_both

NUMBERS = st.floats(-2, 2).map(lambda x: round(x, 2)).filter(lambda x: abs(x) > 0.05)
DOMAINS = {
    **dict.fromkeys(("Neg", "Abs", "Exp", "Erf", "Sin", "Cos", "Sinh", "Cosh", "Atan", "Asinh", "Identity"), (-2, 2)),
    **dict.fromkeys(("Asin", "Acos", "Atanh"), (-0.9, 0.9)),
    **dict.fromkeys(("Sqrt", "Reciprocal", "Log"), (0.3, 3)),
    **dict.fromkeys(("Relu", "Tanh", "Sigmoid", "HardSwish", "Softplus", "Softsign", "Mish"), (-4, 4)),
    "Tan": (-1.2, 1.2),
    "Acosh": (1.2, 3),
}
ATTRIBUTES = {
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "Selu": ("alpha", "gamma"),
    "Celu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Shrink": ("lambd", "bias"),
    "Swish": ("alpha",),
}


@few
@given(op=st.sampled_from(["Add", "Sub", "Mul", "Div", "Mod", "Pow", "PRelu"]), operands=broadcast(2))
def test_two_operands(op, operands):
    how = {"fmod": 1} if op == "Mod" else {}
    if op == "PRelu":  # the slope is broadcast to X, and not X
        operands = [np.broadcast_shapes(*operands), operands[1]]
    positive = {"Div": {1: 0.5}, "Mod": {1: 0.7}, "Pow": {0: 0.5}}.get(op, {})
    try_both(Case(op, operands, how, positive=positive))


@few
@given(op=st.sampled_from(["Sum", "Max", "Min", "Mean"]), operands=st.integers(1, 4).flatmap(broadcast))
def test_any_number_of_operands(op, operands):
    if op == "Mean":  # in the reference evaluator the first operand of Mean must have the shape of the result
        operands = [np.broadcast_shapes(*operands), *operands]
    try_both(Case(op, operands))


@few
@given(operands=broadcast(3), seed=st.integers(0, 9))
def test_where(operands, seed):
    chosen = np.asarray(np.random.default_rng(seed).random(operands[0]) < 0.5)
    try_both(Case("Where", [chosen, *operands[1:]]))


@few
@given(op=st.sampled_from(sorted(DOMAINS)), shape=shapes())
def test_one_operand(op, shape):
    assume(shape or op != "Softsign")  # the reference evaluator's takes no scalar
    try_both(Case(op, [shape], within={0: DOMAINS[op]}))


@few
@given(op=st.sampled_from(sorted(ATTRIBUTES)), shape=shapes(), data=st.data())
def test_activations_with_parameters(op, shape, data):
    how = {name: data.draw(NUMBERS) for name in ATTRIBUTES[op]}
    if op in ("Celu", "Shrink"):
        how = {name: abs(value) for name, value in how.items()}
    try_both(Case(op, [shape], how))


@few
@given(op=st.sampled_from(["Softmax", "LogSoftmax"]), shape=shapes(1), data=st.data())
def test_distributions(op, shape, data):
    try_both(Case(op, [shape], {"axis": data.draw(axis_of(shape))}))


@few
@given(shape=shapes(), low=st.sampled_from([None, (), np.array(-0.4)]), high=st.sampled_from([None, (), np.array(0.6)]))
def test_clip(shape, low, high):
    drawn = {1: (-0.8, -0.1), 2: (0.1, 0.8)}
    within = {i: drawn[i] for i, limit in enumerate([low, high], 1) if isinstance(limit, tuple)}
    try_both(Case("Clip", [shape, low, high], within=within))
