"""`edgelora adapters BUNDLE combine`: from the store into the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelora.adapter import new_adapter
from edgelora.config import LoraConfig
from tests.device.command import Command
from tests.test_peft_exchange import randomized_adapter

TEXTS = ["make it warm", "turn the light up now please", "stop"]


@pytest.fixture
def model(open_model: Callable[..., Any]) -> Any:
    """A store with two adapters that have heads and one that has none."""
    opened = open_model()
    manifest = opened.bundle.manifest
    for seed, (name, rank) in enumerate((("ann", 3), ("ben", 3), ("wide", 5))):
        made = randomized_adapter(new_adapter(manifest, LoraConfig(r=rank, lora_alpha=2), ("a", "b")), seed)
        if name == "wide":
            made = made.with_tensors({n: t for n, t in made.tensors.items() if "lora" in n})
        opened.store.save(name, made)
    return opened


def test_the_sum_of_deltas(run: Command, bundle: Path, model: Any, tmp_path: Path):
    """One layer that is adapted: the sum of adapters at its weight, and the head that was named."""
    command = ("adapters", bundle, "combine", "both", "--store", tmp_path / "store")
    body = run.json(*command, "--from", "ann:0.5", "wide:-2", "--combination-type", "cat")
    assert body["weights"] == {"ann": 0.5, "wide": -2.0} and body["version"] == 1
    ann, wide, both = (model.store.load(name) for name in ("ann", "wide", "both"))
    feeds = [a.feeds(model.bundle.manifest) for a in (ann, wide, both)]
    for point in model.bundle.manifest.points:
        one, other, total = (f[point.input_a].astype(float) @ f[point.input_b] for f in feeds)
        np.testing.assert_allclose(total, 0.5 * one - 2 * other, atol=1e-4)
    assert both.labels == ("a", "b")
    assert len(model.predict(TEXTS, adapter="both")) == 3
    listed = [entry["name"] for entry in run.json("adapters", bundle, "list", "--store", tmp_path / "store")]
    assert listed == ["ann", "ben", "both", "wide"]


def test_the_seed_decides_what_dare_keeps(run: Command, bundle: Path, model: Any, tmp_path: Path):
    def made(name: str, seed: int) -> Any:
        options = ("--combination-type", "dare_ties", "--density", "0.5", "--seed", str(seed), "--head-from", "ben")
        run.json(
            "adapters", bundle, "combine", name, "--store", tmp_path / "store", "--from", "ann", "ben:0.3", *options
        )
        return model.store.load(name)

    one, same, other = made("one", 1), made("same", 1), made("other", 2)
    name = one.points[0] + ".lora_A"
    np.testing.assert_array_equal(one.tensors[name], same.tensors[name])
    assert not np.array_equal(one.tensors[name], other.tensors[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "needs --from"),
        (("--from", "ann:x", "ben"), "'x' is not a number"),
        (("--from", "ann:1", "ann:2"), "names ann twice"),
        (("--from", "ann", "nobody"), "nobody"),
        (("--from", "ann", "ben"), "say whose to keep"),
        (("--from", "ann", "wide", "--combination-type", "linear"), "needs equal ranks"),
        (("--from", "ann", "wide", "--density", "0.5"), "takes no density"),
    ],
)
def test_what_cannot_be_combined_is_refused_and_saves_nothing(
    run: Command, bundle: Path, model: Any, tmp_path: Path, options: tuple[str, ...], message: str
):
    command = ("adapters", bundle, "combine", "new", "--store", tmp_path / "store")
    assert message in run.refused(*command, *options)
    assert "new" not in model.store.list()
