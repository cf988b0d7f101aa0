"""The oracle is strict: wrong rules do not pass it."""

import onnx_ir as ir
import pytest

from edgelora_tools.gradients import NON_DIFFERENTIABLE, RULES, gradient_rule, non_differentiable
from edgelora_tools.gradients.shapes import transpose_last, unbroadcast
from tests.gradients.case import Case, axes
from tests.gradients.checker import check


def flipped_sign(op, node, dy):  # Sub: dB = −dY
    a, b = node.inputs
    return lambda: unbroadcast(op, dy, a), lambda: unbroadcast(op, dy, b)


def dropped_factor(op, node, dy):  # ReduceMean: dX = dY/n
    (x,) = node.inputs[:1]
    return (lambda: op.Expand(dy, op.Shape(x)),)


def missing_transpose(op, node, dy):  # MatMul: dA = dY·Bᵀ
    a, b = node.inputs
    return lambda: op.MatMul(dy, b), lambda: op.MatMul(transpose_last(op, a), dy)


def missing_sum(op, node, dy):  # Softmax: dX = (dY − Σ dY∘Y)∘Y
    (y,) = node.outputs
    return (lambda: op.Mul(dy, y),)


def one_wrong_element(op, node, dy):  # Neg: dX = −dY
    (x,) = node.inputs
    return (lambda: op.ScatterND(op.Neg(dy), op.Constant(value=ir.tensor([[1, 2]])), op.CastLike([0.0], x)),)


def missing_thunk(op, node, dy):  # Sub: dB = −dY
    return lambda: dy, None


def inverse_permutation_forgotten(op, node, dy):  # Transpose
    return (lambda: op.Transpose(dy, perm=node.attributes.get_ints("perm")),)


MUTANTS = [
    (flipped_sign, Case("Sub", [(2, 3), (3,)])),
    (dropped_factor, Case("ReduceMean", [(2, 3), axes(1)])),
    (missing_transpose, Case("MatMul", [(3, 3), (3, 3)])),
    (missing_sum, Case("Softmax", [(2, 3)])),
    (one_wrong_element, Case("Neg", [(3, 4)])),
    (missing_thunk, Case("Sub", [(2, 3), (2, 3)])),
    (inverse_permutation_forgotten, Case("Transpose", [(3, 3, 3)], {"perm": (1, 2, 0)})),
]


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize(("rule", "case"), MUTANTS, ids=[rule.__name__ for rule, _ in MUTANTS])
def test_a_wrong_rule_is_caught(monkeypatch, rule, case, symbolic):
    check(case, symbolic)
    monkeypatch.setitem(RULES, ("", case.op), rule)
    with pytest.raises(AssertionError):
        check(case, symbolic)


def test_an_operator_has_one_rule():
    with pytest.raises(ValueError, match="a second gradient rule for"):
        gradient_rule("Add")(flipped_sign)
    with pytest.raises(ValueError, match="already has a gradient rule"):
        non_differentiable("Add")
    assert not RULES.keys() & NON_DIFFERENTIABLE
