"""Every rule with a sign flipped, a factor dropped, a transpose removed and so on fails some case of its operator."""

import pytest

from edgelora_tools.gradients import RULES
from tests.gradients.mutation import survivors

SAMPLE = (6, 8)
"""Cases to look through for mutants and mutants to try, of each operator: a suite's time allows no more."""

_ADAPTERS = "edgelora"


@pytest.mark.parametrize("operator", sorted(key for key in RULES if key[0] != _ADAPTERS), ids=lambda key: key[1])
def test_cases_kill_mutants(operator):
    left, _ = survivors(operator, SAMPLE)
    assert not left, "\n".join(map(str, left))


def test_every_mutant_of_some_rules_is_killed():
    for op in ("Div", "MatMul", "Softmax", "ReduceMean", "Where"):
        left, tried = survivors(("", op))
        assert not left, "\n".join(map(str, left))
        assert tried > 4


def test_a_case_that_proves_nothing_leaves_survivors(monkeypatch):
    from tests.gradients import mutation
    from tests.gradients.case import Case

    monkeypatch.setattr(
        mutation, "cases_of", lambda operator: (Case("Mul", [(2, 3), ()], wrt=(0,), within={1: (1, 1)}),)
    )
    left, _ = survivors(("", "Mul"))
    assert "first factor only" in {mutant.mutation for mutant in left}
