"""An adapter in memory: its initialisation, what it feeds, what does not fit a base."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgelora.adapter import Adapter, new_adapter
from edgelora.config import LoraConfig
from edgelora.errors import AdapterError, ConfigError
from tests.tiny_manifest import MANIFEST, SIZE, VALUE_SIZE, WITHOUT_HEAD

LABELS = ("off", "on", "warmer")
QUERY, VALUE = "encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value"


def trained(config: LoraConfig | None = None, seed: int = 0) -> Adapter:
    """An adapter of which no tensor is zero."""
    rng = np.random.default_rng(seed)
    fresh = new_adapter(MANIFEST, config or LoraConfig(r=2, lora_alpha=6, target_modules=("query",)), LABELS, rng=rng)
    return fresh.with_tensors({n: rng.standard_normal(t.shape).astype(np.float32) for n, t in fresh.tensors.items()})


def with_tensor(adapter: Adapter, name: str, tensor: np.ndarray) -> Adapter:
    return adapter.with_tensors({**adapter.tensors, name: tensor})


def test_the_initialisation_is_pefts():
    config = LoraConfig(r=64, rank_pattern={r"layer\.1\..*": 3})
    adapter = new_adapter(MANIFEST, config, LABELS, rng=np.random.default_rng(1))
    a = adapter.tensors[f"{QUERY}.lora_A"]
    assert a.shape == (SIZE, 64)
    bound = 1 / np.sqrt(SIZE)
    assert np.abs(a).max() <= bound
    assert np.isclose(a.std(), bound / np.sqrt(3), rtol=0.1)
    assert adapter.tensors[f"{VALUE}.lora_A"].shape == (SIZE, 3)
    assert adapter.tensors[f"{VALUE}.lora_B"].shape == (3, VALUE_SIZE)
    assert not any(t.any() for n, t in adapter.tensors.items() if n.endswith((".lora_B", ".bias")))
    assert adapter.tensors["classifier.weight"].shape == (len(LABELS), SIZE)
    assert 0 < np.abs(adapter.tensors["classifier.weight"]).max() < 0.02 * 5
    assert adapter.config.modules_to_save == ("classifier",)
    assert adapter.parameters == sum(t.size for t in adapter.tensors.values())
    adapter.validate(MANIFEST)


def test_the_generator_decides_the_values():
    def values(seed: int) -> np.ndarray:
        return new_adapter(MANIFEST, LoraConfig(), LABELS, rng=np.random.default_rng(seed)).tensors[f"{QUERY}.lora_A"]

    np.testing.assert_array_equal(values(3), values(3))
    assert (values(3) != values(4)).any()


def test_a_head_needs_labels_or_outputs():
    with pytest.raises(ConfigError, match="labels"):
        new_adapter(MANIFEST, LoraConfig())
    assert new_adapter(MANIFEST, LoraConfig(), outputs=2).tensors["classifier.bias"].shape == (2,)
    assert "classifier.weight" not in new_adapter(WITHOUT_HEAD, LoraConfig()).tensors


@pytest.mark.parametrize("labels", [("a", "a"), ("a", " "), ("a", "\ud800")])
def test_bad_labels_are_refused(labels: tuple[str, ...]):
    with pytest.raises(ConfigError, match="label"):
        new_adapter(MANIFEST, LoraConfig(), labels)


@pytest.mark.parametrize("rslora", [False, True])
def test_feeds_scale_b_and_fill_absent_points_with_rank_zero(rslora: bool):
    config = LoraConfig(r=4, lora_alpha=6, target_modules=("query",), alpha_pattern={"0.*query": 10}, use_rslora=rslora)
    adapter = trained(config)
    feeds = adapter.feeds(MANIFEST)
    assert set(feeds) == {n for p in MANIFEST.points for n in (p.input_a, p.input_b)} | {
        "classifier.weight",
        "classifier.bias",
    }
    for layer, alpha in ((0, 10), (1, 6)):
        name = f"encoder.layer.{layer}.attention.self.query"
        scale = alpha / (2 if rslora else 4)
        np.testing.assert_array_equal(feeds[f"{name}.lora_A"], adapter.tensors[f"{name}.lora_A"])
        np.testing.assert_allclose(feeds[f"{name}.lora_B"], adapter.tensors[f"{name}.lora_B"] * scale, rtol=1e-6)
    assert feeds[f"{VALUE}.lora_A"].shape == (SIZE, 0)
    assert feeds[f"{VALUE}.lora_B"].shape == (0, VALUE_SIZE)
    assert all(f.dtype == np.float32 and f.flags.c_contiguous for f in feeds.values())


def test_feeds_are_contiguous_whatever_the_tensors_are():
    adapter = trained()
    adapter = adapter.with_tensors({n: np.asfortranarray(t) for n, t in adapter.tensors.items()})
    assert all(f.flags.c_contiguous for f in adapter.feeds(MANIFEST).values())


def test_feeds_without_a_head_leave_it_out():
    adapter = trained()
    adapter = adapter.with_tensors({n: t for n, t in adapter.tensors.items() if "lora" in n})
    adapter.validate(MANIFEST)
    assert not any(n.startswith("classifier") for n in adapter.feeds(MANIFEST))


def test_another_base_is_refused_with_both_digests():
    with pytest.raises(AdapterError, match=r"another base model.*cdcdcdcdcdcd.*abababababab"):
        replace(trained(), base_digest="cd" * 32).validate(MANIFEST)


A, B = f"{QUERY}.lora_A", f"{QUERY}.lora_B"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (A, np.zeros((5, 2), np.float32), rf"{A} has shape \[5, 2\] where \[6, r\]"),
        (A, np.zeros((6, 2, 1), np.float32), rf"{A} has shape"),
        (A, np.zeros((6, 3), np.float32), "lora_A has rank 3, lora_B 2 where its settings say 2"),
        (B, np.zeros((2, 7), np.float32), rf"{B} has shape \[2, 7\] where \[r, 6\]"),
        (B, np.full((2, 6), np.nan, np.float32), rf"{B} holds NaN"),
        (B, np.full((2, 6), np.inf, np.float32), rf"{B} holds NaN or infinity"),
        (B, np.zeros((2, 6)), rf"{B} is float64"),
        ("elsewhere.lora_A", np.zeros((6, 2), np.float32), "elsewhere.lora_A is no input"),
        (f"{VALUE}.lora_B", np.zeros((2, 4), np.float32), "lora_B and no lora_A"),
        (f"{VALUE}.lora_A", np.zeros((6, 2), np.float32), "lora_A and no lora_B"),
        ("classifier.weight", np.zeros((2, 6), np.float32), r"classifier.weight has shape \[2, 6\] where \[3, 6\]"),
        ("classifier.bias", np.zeros((4,), np.float32), "different numbers of outputs"),
    ],
)
def test_what_does_not_fit_is_named(name: str, tensor: np.ndarray, message: str):
    with pytest.raises(AdapterError, match=message):
        with_tensor(trained(), name, tensor).validate(MANIFEST)


def test_half_a_head_is_refused():
    adapter = trained()
    half = adapter.with_tensors({n: t for n, t in adapter.tensors.items() if n != "classifier.bias"})
    with pytest.raises(AdapterError, match=r"classifier\.bias is missing"):
        half.validate(MANIFEST)


def test_a_head_of_another_task_is_refused():
    with pytest.raises(AdapterError, match="trained for regression"):
        replace(trained(), task="regression").validate(MANIFEST)


def test_all_problems_are_reported_at_once_and_not_without_end():
    adapter = with_tensor(trained(), A, np.zeros((5, 2), np.float32))
    adapter = with_tensor(adapter, B, np.full((2, 6), np.nan, np.float32))
    with pytest.raises(AdapterError, match=r"(?s)has shape.*NaN"):
        adapter.validate(MANIFEST)
    many = adapter.with_tensors({f"p{i}.lora_A": np.zeros((1, 1), np.float32) for i in range(1000)})
    with pytest.raises(AdapterError) as caught:
        many.validate(MANIFEST)
    assert "more" in str(caught.value)
    assert len(str(caught.value)) < 5000
