"""Activation functions of shapes, axes and parameters drawn at random."""

from hypothesis import given
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.drawing import axis_of, broadcast, few, shapes, try_both

PARAMETER = st.sampled_from([-1.2, -0.3, 0.2, 0.9, 1.5])
PLAIN = ("Relu", "Tanh", "Sigmoid", "Softplus", "Softsign", "Mish", "HardSwish")


@few
@given(op=st.sampled_from(PLAIN), shape=shapes(1))
def test_without_parameters(op, shape):  # the reference evaluator takes no scalar for Softsign
    try_both(Case(op, [shape], within={0: (-5.0, 5.0)}))


@few
@given(op=st.sampled_from(["LeakyRelu", "Elu", "ThresholdedRelu"]), shape=shapes(), alpha=PARAMETER)
def test_alpha(op, shape, alpha):
    try_both(Case(op, [shape], {"alpha": alpha}))


@few
@given(shape=shapes(), alpha=st.sampled_from([0.4, 1.0, 1.7]))
def test_celu(shape, alpha):
    try_both(Case("Celu", [shape], {"alpha": alpha}))


@few
@given(op=st.sampled_from(["Selu", "HardSigmoid", "Shrink"]), shape=shapes(), a=PARAMETER, b=PARAMETER)
def test_two_parameters(op, shape, a, b):
    names = {"Selu": ("alpha", "gamma"), "HardSigmoid": ("alpha", "beta"), "Shrink": ("lambd", "bias")}[op]
    a = abs(a) if op in ("HardSigmoid", "Shrink") else a
    try_both(Case(op, [shape], dict(zip(names, (a, b), strict=True))))


@few
@given(drawn=broadcast(1), lead=shapes(0, 2))
def test_prelu(drawn, lead):
    (slope,) = drawn
    full = (*lead, *(4 if d == 1 else d for d in slope))
    try_both(Case("PRelu", [full, slope]))


@few
@given(shape=shapes(), how=st.sampled_from(["none", "tanh"]))
def test_gelu(shape, how):
    try_both(Case("Gelu", [shape], {"approximate": how}))


@few
@given(op=st.sampled_from(["Softmax", "LogSoftmax"]), shape=shapes(1), data=st.data())
def test_distributions(op, shape, data):
    try_both(Case(op, [shape], {"axis": data.draw(axis_of(shape))}))
