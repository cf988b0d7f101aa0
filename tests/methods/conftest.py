"""The bundles of the contract, converted once."""

import pytest

from tests.methods.world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("methods"))
