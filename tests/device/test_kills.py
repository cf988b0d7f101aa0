"""A few of the random kills of `python -m tests.kills`, which is run for a thousand by hand."""

from __future__ import annotations

from pathlib import Path

from tests.device import tiny


def test_random_kills_lose_nothing(bundle: Path):
    process = tiny.start_python("-m", "tests.kills", "--kills", "9", "--seed", "7", "--bundle", bundle)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "none missing, none half there" in out
