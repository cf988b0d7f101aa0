"""Rows with adapters of their own in one run: equal to one by one, in few runs, within bounded memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora import Adapter, LoraConfig, Model
from edgelora.active import ActiveAdapter, AdapterCache
from edgelora.adapter import new_adapter
from edgelora.errors import AdapterError, ConfigError, StoreError
from edgelora.mixing import AdapterStack, Batch, plan_batches
from tests.device import tiny

TEXTS = [row["text"] for row in tiny.commands()]
CLASSES = ("a", "b", "c", "d", "e")


def person(
    model: Model, seed: int, rank: int = 2, classes: int = 3, points: str | tuple[str, ...] = "all-linear"
) -> Adapter:
    """An adapter that changes what the base says."""
    rng = np.random.default_rng(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=points)
    made = new_adapter(model.bundle.manifest, config, CLASSES[:classes], outputs=classes, rng=rng)
    return made.with_tensors(
        {n: rng.standard_normal(t.shape).astype(np.float32) * 0.3 for n, t in made.tensors.items()}
    )


def runs_of(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Records each run: which graph, and for how many rows."""
    made: list[tuple[str, int]] = []
    for file in filter(None, (model.bundle.manifest.forward, model.bundle.manifest.mixed)):
        graph = model.bundle.graph(file)
        monkeypatch.setattr(
            graph, "run", lambda feeds, f=file, run=graph.run: made.append((f, len(feeds["input_ids"]))) or run(feeds)
        )
    return made


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(st.integers(0, 6), max_size=80), most=st.integers(1, 32), alone=st.integers(0, 40))
def test_a_plan_has_every_row_once(keys, most, alone):
    batches = plan_batches(keys, most, alone)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(keys)))
    for batch in batches:
        assert 0 < len(batch.rows) <= most
        assert list(batch.keys) == [keys[row] for row in batch.rows]
    mixed = [batch for batch in batches if batch.is_mixed]
    assert not mixed or alone > 0
    for batch in batches:
        assert list(batch.rows) == sorted(batch.rows)
        assert not batch.is_mixed or max(Counter(batch.keys).values()) < alone, "many rows of one run alone"
    assert sum(len(b.rows) < most for b in mixed) <= 1, "mixed batches are full, but for one"


def test_plans():
    assert plan_batches([], 4, 2) == []
    assert plan_batches("aabab", 8, 0) == [Batch((0, 1, 3), ("a",) * 3), Batch((2, 4), ("b",) * 2)]
    assert plan_batches("aabab", 8, 3) == [Batch((0, 1, 3), ("a",) * 3), Batch((2, 4), ("b",) * 2)]
    assert plan_batches("aabac", 8, 3) == [Batch((0, 1, 3), ("a",) * 3), Batch((2, 4), ("b", "c"))]


@pytest.fixture(scope="module")
def models(bundle_of, tmp_path_factory):
    return {
        task: Model.open(bundle_of(task), tmp_path_factory.mktemp("store"))
        for task in ("sequence-classification", "token-classification", "sentence-embedding", "regression")
    }


@settings(max_examples=40, deadline=None)
@given(
    task=st.sampled_from(["sequence-classification", "token-classification", "sentence-embedding", "regression"]),
    who=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    shapes=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["all-linear", ("query",), r".*\.1\..*value"])),
        min_size=6,
        max_size=6,
    ),
    base=st.booleans(),
)
def test_a_row_s_answer_does_not_depend_on_the_others_adapters(models, task, who, shapes, base):
    """Ranks, heads and points differ, rows come in any order: what each would get alone."""
    model = models[task]
    people = [person(model, i, rank, classes, points) for i, (rank, classes, points) in enumerate(shapes)]
    adapters: list[Adapter | None] = [people[i] for i in who]
    if base and model.bundle.manifest.head is None:
        adapters[0] = None
    texts = [TEXTS[i % len(TEXTS)] for i in range(len(who))]
    feeds = model.encode(texts)
    together = model.outputs(feeds, adapters=adapters)
    widest = max((len(a.labels) for a in adapters if a is not None and a.labels is not None), default=0)
    for name, got in together.items():
        for row, adapter in enumerate(adapters):
            alone = model.outputs({n: x[row : row + 1] for n, x in feeds.items()}, adapter)[name][0]
            scale = np.abs(alone).max()
            np.testing.assert_allclose(got[row][..., : alone.shape[-1]], alone, atol=2e-5 * max(scale, 1))
            assert np.isneginf(got[row][..., alone.shape[-1] :]).all()
        if task.endswith("-classification"):
            assert got.shape[-1] == widest


def test_many_people_are_few_runs(open_model, monkeypatch):
    model = open_model()
    for i in range(12):
        model.store.save(f"p{i}", person(model, i))
    runs, mixed = runs_of(model, monkeypatch), model.bundle.manifest.mixed
    names = [f"p{i % 12}" for i in range(24)]
    said = model.predict(TEXTS, adapters=names)
    assert runs == [(mixed, 24)]
    assert said == [model.predict([text], name)[0] for text, name in zip(TEXTS, names, strict=True)]
    runs.clear()
    model.predict(TEXTS * 4, adapters=["p0"] * 70 + ["p1"] * 5 + ["p2"] * 21)
    assert sorted(runs) == [("forward.onnx", 21), ("forward.onnx", 32), ("forward.onnx", 32), (mixed, 11)]
    runs.clear()
    model.predict(TEXTS, "p3")
    assert runs == [("forward.onnx", 24)]


def test_the_same_people_again_are_not_stacked_again(open_model):
    model = open_model()
    for i in range(6):
        model.store.save(f"p{i}", person(model, i))
    model.predict(TEXTS[:4], adapters=["p0", "p1", "p2", "p3"])
    assert model.stack.copied == 4
    model.predict(TEXTS[:4], adapters=["p3", "p1", "p0", "p2"])
    model.predict(TEXTS[:2], adapters=["p2", "p0"])
    assert model.stack.copied == 4
    model.predict(TEXTS[:4], adapters=["p5", "p1", "p0", "p2"])
    assert model.stack.copied == 5
    model.store.save("p1", person(model, 99))
    mine = model.predict_proba([TEXTS[0]], "p1")
    logits = model.outputs(TEXTS[:2], adapters=["p1", "p0"])["logits"][0].astype(np.float64)
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), mine[0], atol=1e-5)
    assert model.stack.copied == 6, "a new version is another adapter"


def test_unknown_adapters_are_refused_before_anything_runs(open_model, monkeypatch):
    model = open_model()
    model.store.save("known", person(model, 0))
    runs = runs_of(model, monkeypatch)
    with pytest.raises(StoreError, match="no adapter 'nobody'"):
        model.predict(TEXTS[:3], adapters=["known", "known", "nobody"])
    with pytest.raises(ConfigError, match="no adapter was given"):
        model.predict(TEXTS[:3], adapters=["known", "known", None])
    with pytest.raises(AdapterError, match="another base"):
        model.predict(TEXTS[:2], adapters=["known", replace(person(model, 0), base_digest="0" * 64)])
    with pytest.raises(ConfigError, match="2 adapters for 3 rows"):
        model.predict(TEXTS[:3], adapters=["known", "known"])
    assert runs == []


def test_a_bundle_without_the_graph_groups_rows(models, monkeypatch):
    whole = models["sequence-classification"]
    people = [person(whole, i) for i in range(3)]
    asked = [people[i % 3] for i in range(24)]
    older = Model(whole.bundle, whole.store)
    manifest = replace(whole.bundle.manifest, mixed=None)
    wanted = whole.outputs(TEXTS, adapters=asked)["logits"]
    runs = runs_of(whole, monkeypatch)
    monkeypatch.setattr(older.bundle, "manifest", manifest)
    assert np.abs(older.outputs(TEXTS, adapters=asked)["logits"] - wanted).max() < 2e-5
    assert runs == [("forward.onnx", 8)] * 3


def test_what_the_stack_cannot_hold_runs_alone(open_model, bundle_of, tmp_path):
    roomy = open_model("sentence-embedding")
    people = [person(roomy, i) for i in range(9)]
    asked = [people[i % 9] for i in range(24)]
    wanted = roomy.predict(TEXTS, adapters=asked)
    assert roomy.stack.copied == 9
    size = ActiveAdapter(people[0].feeds(roomy.bundle.manifest), None, False).size
    for limit in (0, size, 5 * size):
        tight = Model.open(bundle_of("sentence-embedding"), tmp_path / "none", adapter_memory=limit)
        np.testing.assert_allclose(np.asarray(tight.predict(TEXTS, adapters=asked)), np.asarray(wanted), atol=2e-5)
        assert tight.stack.copied == 0
    exact = Model.open(bundle_of("sentence-embedding"), tmp_path / "none", adapter_memory=10 * size)
    np.testing.assert_allclose(np.asarray(exact.predict(TEXTS, adapters=asked)), np.asarray(wanted), atol=2e-5)
    assert exact.stack.copied == 9


def active(size: int) -> ActiveAdapter:
    return ActiveAdapter({"x": np.zeros(size // 4, np.float32)}, None, False)


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(0, 400), used=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 25)), max_size=60))
def test_the_cache_is_bounded_in_bytes(limit, used):
    cache = AdapterCache(limit)
    order: list[int] = []
    for key, quarter in used:
        one = cache.get(key)
        if one is None:
            one = active(4 * quarter)
            cache.put(key, one)
        if one.size <= limit:
            order = [k for k in order if k != key] + [key]
        kept = [k for k in order if cache._kept.get(k) is not None]  # pyright: ignore[reportPrivateUsage]
        assert cache.size == sum(a.size for a in cache._kept.values()) <= limit  # pyright: ignore[reportPrivateUsage]
        assert kept == order[len(order) - len(kept) :], "those used last are kept"
        order = kept


def test_a_slot_in_use_is_not_written(models):
    """Two runs at once: the second's adapters do not take the slots that the first reads."""
    model = models["sentence-embedding"]
    feeds = [ActiveAdapter(person(model, i).feeds(model.bundle.manifest), None, False) for i in range(6)]
    adapters: dict[Hashable, ActiveAdapter] = dict(enumerate(feeds))
    stack = AdapterStack(model.bundle.manifest, 5 * feeds[0].size)  # four and the empty slot
    name = model.bundle.manifest.points[0].input_a
    with stack.loaded([0, 1, 2], adapters) as first:
        assert first is not None
        with stack.loaded([3, 4], adapters) as second:
            assert second is None, "three are in use, so two do not fit"
        with stack.loaded([0, 3], adapters) as second:
            assert second is not None
            for key, slot in zip([0, 3], second["adapter_index"], strict=True):
                assert np.array_equal(second[name][slot], feeds[key].feeds[name])
        for key, slot in zip([0, 1, 2], first["adapter_index"], strict=True):
            assert np.array_equal(first[name][slot], feeds[key].feeds[name])
    with stack.loaded([3, 4, None], adapters) as later:
        assert later is not None and later["adapter_index"][2] == 0
        assert not later[name][0].any()


def test_threads_with_different_people(models):
    model = models["sentence-embedding"]
    people = [person(model, i, rank=1 + i % 3) for i in range(8)]
    alone = [np.asarray(model.predict([TEXTS[i]], people[i])) for i in range(8)]
    wrong: list[object] = []

    def serve(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(15):
            who = rng.permutation(8)[:4]
            got = np.asarray(model.predict([TEXTS[i] for i in who], adapters=[people[i] for i in who]))
            wrong.extend(i for i, row in zip(who, got, strict=True) if np.abs(row - alone[i]).max() > 1e-4)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_ranks_are_as_wide_as_needed_now(models):
    """One large adapter does not make all later batches slow."""
    model = models["sentence-embedding"]
    manifest = model.bundle.manifest
    feeds: dict[Hashable, ActiveAdapter] = {}
    for r in (1, 2, 16):
        feeds[r] = ActiveAdapter(person(model, r, rank=r).feeds(manifest), None, False)
    stack, name = AdapterStack(manifest, 1 << 20), manifest.points[0].input_a
    widths: list[int] = []
    for keys in ([1, 2], [1, 16], [16, 2], [1, 2]):
        with stack.loaded(keys, feeds) as stacked:
            assert stacked is not None
            widths.append(stacked[name].shape[-1])
    assert widths == [2, 16, 16, 2]
