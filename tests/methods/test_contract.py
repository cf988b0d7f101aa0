"""Every adapter method against the contract of `checks.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgelora.methods import METHODS as ON_DEVICE
from edgelora.methods import method_of
from edgelora_tools.methods import METHODS as IN_GRAPHS
from tests.methods.cases import CASES, Case
from tests.methods.checks import CONTRACT
from tests.methods.world import World


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_contract(world: World, case: Case, check: Callable[[World, Case, Path], None], tmp_path: Path):
    check(world, case, tmp_path)


def test_every_method_has_a_case():
    assert {method_of(case.ours) for case in CASES.values()} == set(ON_DEVICE)
    assert {method.graphs for method in ON_DEVICE} == set(IN_GRAPHS)
