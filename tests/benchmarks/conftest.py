"""What benchmarks on utterances need: the data and the base."""

from __future__ import annotations

import pytest

from benchmarks import clinc
from benchmarks.measure import BenchmarkError
from edgelora.errors import EdgeLoraError
from edgelora_tools.recipes import fetch, load_recipe


@pytest.fixture(scope="session")
def clinc_base() -> None:
    """The utterances and the base are there."""
    try:
        clinc.find_data()
        fetch(load_recipe(clinc.RECIPE))
    except (BenchmarkError, EdgeLoraError) as error:
        pytest.skip(str(error))
