"""Parity of a language model is held to what its source knows of itself: rows together and alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgelora.bundle import Bundle
from edgelora.parity import PARITY_TOLERANCE, parity_samples, parity_tolerance, source_spread


def test_the_source_runs_rows_alone_too(language_source: Any, language_bundle: Path) -> None:
    feeds = parity_samples(Bundle.open(language_bundle))[2][0]
    assert language_source.otherwise is not None and len(feeds["input_ids"]) > 1
    together, alone = language_source.run(feeds)["logits"], language_source.otherwise(feeds)["logits"]
    last = language_source.run({name: x[-1:] for name, x in feeds.items()})["logits"]
    assert np.array_equal(alone[-1:], last)
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-4 * np.abs(together).max())


def test_the_bundle_tells_how_far_they_are_apart(language_bundle: Path) -> None:
    """A model of which no token stands on an edge is held to no less than others."""
    manifest = Bundle.open(language_bundle).manifest
    assert "logits" in manifest.source["spread"]
    assert source_spread(manifest, "logits") < 1e-5
    assert parity_tolerance(manifest, "logits") == PARITY_TOLERANCE["float32"]
