"""Weighted combinations equal PEFT's `add_weighted_adapter`, with the same numbers drawn for DARE."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import peft
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from edgelora.adapter import Adapter, new_adapter, read_adapter
from edgelora.combining import COMBINATION_TYPES, combine
from edgelora.config import LoraConfig
from edgelora.errors import ConfigError
from edgelora.manifest import Head, InsertionPoint
from tests.test_peft_exchange import lora_of
from tests.tiny_manifest import WITHOUT_HEAD


class Small(nn.Module):
    """Two linear layers and two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 9, bias=False)
        self.second = nn.Linear(9, 5)
        self.square = nn.Conv2d(3, 7, 3)
        self.point = nn.Conv2d(7, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


POINTS = (
    InsertionPoint("first", "MatMul", 6, 9),
    InsertionPoint("second", "MatMul", 9, 5),
    InsertionPoint("square", "Conv", 3, 7, kernel=(3, 3)),
    InsertionPoint("point", "Conv", 7, 8, kernel=(1, 1)),
)
MANIFEST = replace(WITHOUT_HEAD, points=POINTS)
ALL = [point.id for point in POINTS]
DENSITY = 0.6


class TorchDraws:
    """The numbers that torch's Bernoulli draws decide: 0 where it keeps a value, else 1."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def random(self, size: tuple[int, ...], /) -> np.ndarray:
        return 1.0 - torch.bernoulli(torch.full(size, DENSITY), generator=self.generator).numpy()


def both(tmp_path: Path, configs: dict[str, dict[str, Any]]) -> tuple[Any, dict[str, Adapter]]:
    """A PEFT model with these adapters, and the same ones here."""
    torch.manual_seed(0)
    model: Any = None
    for name, config in configs.items():
        settings = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ALL} | config)
        if model is None:
            model = peft.get_peft_model(copy.deepcopy(Small()), settings, adapter_name=name)  # pyright: ignore
        else:
            model.add_adapter(name, settings)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(tmp_path))
    adapters = {name: read_adapter(tmp_path / name, MANIFEST, accept_base=True) for name in configs}
    order = {f"{point}.{factor}": i for i, point in enumerate(ALL) for factor in ("lora_A", "lora_B")}
    return model, {
        name: a.with_tensors(dict(sorted(a.tensors.items(), key=lambda item: order[item[0]])))
        for name, a in adapters.items()
    }


def deltas(model: Any, name: str) -> dict[str, np.ndarray]:
    """What PEFT's adapter adds to each weight."""
    modules = dict(model.base_model.model.named_modules())
    with torch.no_grad():
        return {p: modules[p].get_delta_weight(name).numpy() for p in ALL if name in modules[p].lora_A}


def ours(adapter: Adapter) -> dict[str, np.ndarray]:
    found = {}
    for p in adapter.points:
        a, b = adapter.tensors[f"{p}.lora_A"], adapter.tensors[f"{p}.lora_B"]
        delta = (a @ b).T if a.ndim == 2 else np.tensordot(b.reshape(b.shape[:2]), a, 1)
        found[p] = delta * lora_of(adapter).scale(p)
    return found


def assert_equal(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for point, delta in wanted.items():
        np.testing.assert_allclose(
            got[point], delta, rtol=1e-5, atol=1e-5 * float(np.abs(delta).max() + 1e-3), err_msg=point
        )


def combined(model: Any, weights: list[float], names: list[str], kind: str, **options: Any) -> dict[str, np.ndarray]:
    """PEFT's; what it draws comes from a generator of its own, for it also draws the values that it then replaces."""
    generator, bernoulli = torch.Generator().manual_seed(7), torch.bernoulli
    with mock.patch("torch.bernoulli", lambda tensor: bernoulli(tensor, generator=generator)):
        model.add_weighted_adapter(names, weights, "new", combination_type=kind, **options)
    return deltas(model, "new")


def density_of(kind: str) -> dict[str, Any]:
    return {} if kind in ("linear", "cat", "svd") else {"density": DENSITY}


@pytest.mark.parametrize("method", ["total", "frequency"])
@pytest.mark.parametrize("kind", COMBINATION_TYPES)
def test_every_combination_equals_pefts(kind: str, method: str, tmp_path: Path):
    model, adapters = both(tmp_path, {"a": {}, "b": {"lora_alpha": 3}, "c": {"target_modules": ["first", "square"]}})
    weights = [0.7, -0.4, 1.3]
    wanted = combined(model, weights, list(adapters), kind, majority_sign_method=method, **density_of(kind))
    new = combine(adapters, weights, kind, majority_sign_method=method, rng=TorchDraws(), **density_of(kind))
    new.validate(MANIFEST)
    assert_equal(ours(new), wanted)


@settings(max_examples=20)
@given(
    st.sampled_from(COMBINATION_TYPES),
    st.lists(st.floats(-2, 2, width=16).filter(lambda w: abs(w) > 0.01), min_size=1, max_size=3),
    st.integers(1, 5),
    st.lists(st.sampled_from([1, 4, 7.5]), min_size=3, max_size=3),
)
def test_any_weights_ranks_and_alphas(
    tmp_path_factory: Any, kind: str, weights: list[float], r: int, alphas: list[float]
):
    configs = {n: {"r": r, "lora_alpha": alpha} for n, alpha, _ in zip("abc", alphas, weights, strict=False)}
    model, adapters = both(tmp_path_factory.mktemp("adapters"), configs)
    if "svd" in kind:  # among directions that are as large, rounding chooses which are kept
        parts = [deltas(model, name) for name in adapters]
        assume(all(cut_is_clear(np.tensordot(weights, [part[p] for part in parts], 1), r) for p in ALL))
    wanted = combined(model, weights, list(adapters), kind, **density_of(kind))
    assert_equal(ours(combine(adapters, weights, kind, rng=TorchDraws(), **density_of(kind))), wanted)


def cut_is_clear(delta: np.ndarray, r: int) -> bool:
    """Whether the r-th singular value is well above the next, so that the best matrix of rank r is well told."""
    values = np.linalg.svd(delta.reshape(len(delta), -1).astype(np.float64), compute_uv=False)
    return len(values) <= r or values[r] < 0.9 * values[r - 1]


@pytest.mark.parametrize("options", [{"svd_rank": 2}, {"svd_rank": 5}, {}])
def test_ranks_that_differ_and_a_rank_of_its_own(options: dict[str, Any], tmp_path: Path):
    model, adapters = both(tmp_path, {"a": {"r": 2}, "b": {"r": 4, "rank_pattern": {"second": 3}}})
    wanted = combined(model, [1.0, 0.5], ["a", "b"], "svd", **options)
    new = combine(adapters, [1.0, 0.5], "svd", **options)
    new.validate(MANIFEST)
    assert_equal(ours(new), wanted)
    if "svd_rank" in options:
        assert {lora_of(new).rank(p) for p in new.points} == {options["svd_rank"]}


def test_concatenation_is_the_weighted_sum_with_rslora_and_patterns_too(tmp_path: Path):
    """The sum itself is the measure: PEFT keeps the first adapter's use_rslora, and so multiplies by √r."""
    model, adapters = both(
        tmp_path,
        {"a": {"use_rslora": True, "rank_pattern": {"second": 2}}, "b": {"r": 3, "alpha_pattern": {"first": 9}}},
    )
    sums = {p: 0.7 * d - 0.2 * deltas(model, "b")[p] for p, d in deltas(model, "a").items()}
    new = combine(adapters, [0.7, -0.2], "cat")
    new.validate(MANIFEST)
    assert_equal(ours(new), sums)
    assert [lora_of(new).rank(p) for p in ALL] == [7, 5, 7, 7]
    assert {lora_of(new).scale(p) for p in ALL} == {1.0}
    theirs = combined(model, [0.7, -0.2], ["a", "b"], "cat")
    assert_equal(theirs, {p: d * 7**0.5 for p, d in sums.items()})


def test_convolutions_in_groups_concatenate_group_by_group():
    point = InsertionPoint("grouped", "Conv", 4, 6, kernel=(3,), groups=2)
    manifest = replace(WITHOUT_HEAD, points=(point,))
    rng = np.random.default_rng(0)
    adapters = {}
    for name, r in (("a", 2), ("b", 4)):
        made = new_adapter(manifest, LoraConfig(r=r, lora_alpha=3), rng=rng)
        drawn = {n: rng.standard_normal(t.shape).astype(np.float32) for n, t in made.tensors.items()}
        adapters[name] = made.with_tensors(drawn)

    def delta(adapter: Adapter) -> np.ndarray:
        a, b = adapter.tensors["grouped.lora_A"], adapter.tensors["grouped.lora_B"][..., 0]
        halves = zip(np.split(a, 2), np.split(b, 2), strict=True)
        return np.concatenate([np.tensordot(y, x, 1) for x, y in halves]) * lora_of(adapter).scale("grouped")

    new = combine(adapters, [0.5, -2.0], "cat")
    new.validate(manifest)
    np.testing.assert_allclose(delta(new), 0.5 * delta(adapters["a"]) - 2 * delta(adapters["b"]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="grouped is a convolution in groups"):
        combine(adapters, [0.5, -2.0], "svd")


def headed(name: str, labels: tuple[str, ...] | None) -> Adapter:
    manifest = replace(MANIFEST, task="sequence-classification", head=Head("classifier", 5, "sequence"))
    made = new_adapter(manifest, LoraConfig(r=2), labels or ("x",), rng=np.random.default_rng(len(name)))
    return (
        made if labels else replace(made, tensors={n: t for n, t in made.tensors.items() if "lora" in n}, labels=None)
    )


def test_the_head_is_the_only_one_or_the_one_that_is_named():
    one, other, none = headed("a", ("p", "q")), headed("bb", ("r", "s", "t")), headed("ccc", None)
    new = combine({"one": one, "none": none}, [1, 1], "linear")
    assert new.labels == ("p", "q") and new.config.modules_to_save == ("classifier",)
    np.testing.assert_array_equal(new.tensors["classifier.weight"], one.tensors["classifier.weight"])
    new = combine({"one": one, "other": other}, [1, 1], "linear", head_from="other")
    assert new.labels == ("r", "s", "t")
    with pytest.raises(ConfigError, match=r"one, other have one each: say whose to keep"):
        combine({"one": one, "other": other}, [1, 1], "linear")
    with pytest.raises(ConfigError, match="head_from names none"):
        combine({"one": one, "none": none}, [1, 1], "linear", head_from="none")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mean", {}, "'mean' is none of linear, cat, svd"),
        ("ties", {}, "ties needs a density from 0 to 1"),
        ("dare_linear", {"density": 0.0}, "dare: above 0"),
        ("magnitude_prune_svd", {"density": 1.5}, "density from 0 to 1"),
        ("linear", {"density": 0.5}, "linear takes no density"),
        ("ties", {"density": 0.5, "majority_sign_method": "vote"}, "'vote' is none of total, frequency"),
        ("cat", {"svd_rank": 3}, "cat takes no svd_rank"),
        ("svd", {"svd_rank": 0}, "svd_rank must be from 1"),
    ],
)  # fmt: skip
def test_settings_that_say_nothing_are_refused(kind: str, options: dict[str, Any], message: str):
    made = new_adapter(MANIFEST, LoraConfig(r=2))
    with pytest.raises(ConfigError, match=message):
        combine({"a": made, "b": made}, [1, 1], kind, **options)


def test_adapters_that_do_not_go_together_are_refused():
    made = new_adapter(MANIFEST, LoraConfig(r=2))
    for other, message in (
        (replace(made, base_digest="ff" * 32), "different base models"),
        (replace(made, task="regression"), "different tasks: a sentence-embedding, b regression"),
        (new_adapter(MANIFEST, LoraConfig(r=3)), "linear needs equal ranks, and at first they are a 2, b 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            combine({"a": made, "b": other}, [1, 1], "linear")
    with pytest.raises(ConfigError, match="1 weights for 2 adapters"):
        combine({"a": made, "b": made}, [1], "linear")
    with pytest.raises(ConfigError, match="finite"):
        combine({"a": made, "b": made}, [1, float("nan")], "linear")
