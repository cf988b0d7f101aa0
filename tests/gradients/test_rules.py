"""Every gradient rule against float64 finite differences, with static shapes and with ranks alone."""

import pytest

from edgelora_tools.gradients import RULES
from tests.gradients.cases import CASES
from tests.gradients.checker import check

_ADAPTER_DOMAIN = "edgelora"  # adapter methods bring their own tests


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_rule_matches_finite_differences(case, symbolic):
    check(case, symbolic)


def test_registry_and_case_list_agree():
    registered = {key for key in RULES if key[0] != _ADAPTER_DOMAIN}
    assert registered == {(case.domain, case.op) for case in CASES}
