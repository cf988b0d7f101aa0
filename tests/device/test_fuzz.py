"""A few cases of each fuzzer; `python -m tests.fuzz TARGET --seconds 600` is run by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.device import tiny


@pytest.mark.parametrize("target", ["adapters", "bundles", "data", "store"])
def test_nothing_but_documented_errors(bundle: Path, target: str):
    process = tiny.start_python("-m", "tests.fuzz", target, "--cases", "10", "--seed", "11", "--bundle", bundle)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "findings: 0" in out
