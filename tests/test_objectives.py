"""Objectives: what they feed the loss graphs, against torch's own losses; metrics by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgelora.objectives import (
    NO_CANDIDATE,
    Classification,
    Pairs,
    Regression,
    TokenClassification,
    balanced_weights,
    log_sum_exp,
    stack,
)
from edgelora.tasks import ArrayInputs

RNG = np.random.default_rng(0)


def inputs(rows: int, width: int = 3) -> ArrayInputs:
    """Samples whose content is their number."""
    return ArrayInputs({"x": np.arange(rows)[:, None] + np.zeros((1, width), np.int64)})


def fed(objective: Any, rows: np.ndarray) -> dict[str, Any]:
    """What a whole batch is fed."""
    return objective.feeds(rows, objective.weight(rows))


def parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def weights_of(objective: Any, rows: np.ndarray, micro: int) -> np.ndarray:
    """The loss weights of a batch, over its micro-batches."""
    total = objective.weight(rows)
    return np.concatenate([objective.feeds(part, total)["loss_weight"].ravel() for part in parts(rows, micro)])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 5), st.booleans(), st.randoms())
def test_weights_of_a_batch_sum_to_one_however_it_is_split(labels: list[int], micro: int, weighed: bool, random):
    y = np.array(labels)
    weights = balanced_weights(y, 4) if weighed else None
    rows = np.array(random.sample(range(len(y)), random.randint(1, len(y))))
    assert weights_of(Classification(inputs(len(y)), y, weights), rows, micro).sum() == pytest.approx(1, rel=1e-5)
    assert weights_of(Regression(inputs(len(y)), y[:, None]), rows, micro).sum() == pytest.approx(1, rel=1e-5)
    tokens = [np.array(labels[: i + 1]) for i in range(len(y))]
    tagged = TokenClassification(inputs(len(y)), tokens, weights)
    assert weights_of(tagged, rows, micro).sum() == pytest.approx(1, rel=1e-5)
    pairs = Pairs({"anchor": inputs(len(y)), "positive": inputs(len(y)), "negative": inputs(len(y))}, "triplet")
    assert weights_of(pairs, rows, micro).sum() == pytest.approx(1, rel=1e-5)


def test_class_weights_are_torchs_weighted_cross_entropy():
    y, logits = np.array([0, 1, 1, 2, 1, 0]), RNG.standard_normal((6, 3)).astype(np.float32)
    weights = np.array([0.5, 2.0, 3.0], np.float32)
    rows = np.array([4, 0, 3, 2])
    feeds = fed(Classification(inputs(6), y, weights), rows)
    nll = -torch.log_softmax(torch.from_numpy(logits[rows]), 1)[torch.arange(4), torch.from_numpy(y[rows])].numpy()
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[rows]), torch.from_numpy(y[rows]), weight=torch.from_numpy(weights)
    )
    assert (feeds["loss_weight"] * nll).sum() == pytest.approx(theirs.item(), rel=1e-5)
    assert feeds["labels"].tolist() == y[rows].tolist()
    assert feeds["x"][:, 0].tolist() == rows.tolist()


def test_token_weights_are_torchs_cross_entropy_that_ignores():
    labels = [np.array([-100, 0, 2, -100]), np.array([1, -100]), np.array([-100, -100, 1])]
    weights = np.array([0.5, 2.0, 3.0], np.float32)
    logits = RNG.standard_normal((3, 4, 3)).astype(np.float32)
    padded = np.array([[-100, 0, 2, -100], [1, -100, -100, -100], [-100, -100, 1, -100]])
    rows = np.arange(3)
    for class_weights in (None, weights):
        objective = TokenClassification(inputs(3), labels, class_weights)
        feeds = fed(objective, rows)
        assert feeds["labels"].min() >= 0, "no index outside the classes reaches the graph"
        shares = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
        nll = -np.take_along_axis(shares, feeds["labels"][..., None], -1)[..., 0]
        theirs = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits).reshape(-1, 3),
            torch.from_numpy(padded).reshape(-1),
            weight=None if class_weights is None else torch.from_numpy(class_weights),
            ignore_index=-100,
        )
        assert (feeds["loss_weight"] * nll).sum() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_batch_without_any_counted_token_weighs_nothing():
    objective = TokenClassification(inputs(2), [np.array([-100, -100]), np.array([-100])])
    feeds = fed(objective, np.arange(2))
    assert not feeds["loss_weight"].any()
    assert np.isfinite(feeds["loss_weight"]).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_balanced_weights_are_scikit_learns_formula(labels: list[int]):
    y, weights = np.array(labels), balanced_weights(np.array(labels), 5)
    for c in range(5):
        count = labels.count(c)
        assert weights[c] == pytest.approx(len(labels) / (5 * count) if count else 1.0)
    assert weights.dtype == np.float32
    sums = [weights[y[y == c]].sum() for c in set(labels)]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-5)  # every class that occurs weighs the same


def columns(n: int, names=("anchor", "positive", "negative")) -> dict[str, ArrayInputs]:
    return {name: ArrayInputs({"x": np.arange(n)[:, None] + 100 * i}) for i, name in enumerate(names)}


@pytest.mark.parametrize("negatives", [False, True])
def test_a_contrastive_batch_points_at_its_own_rows(negatives: bool):
    """Anchors are nobody's candidates; every positive and negative is."""
    made = columns(6, ("anchor", "positive", "negative")[: 3 if negatives else 2])
    objective = Pairs(made, "contrastive", temperature=0.1)
    rows = np.array([4, 1, 3])
    feeds = fed(objective, rows)
    x = feeds["x"][:, 0]
    assert x[feeds["anchors"]].tolist() == [4, 1, 3]
    assert x[feeds["positives"]].tolist() == [104, 101, 103]
    assert len(x) == (9 if negatives else 6)
    assert feeds["bias_mask"].shape == (3, len(x))
    assert (feeds["bias_mask"][:, :3] == NO_CANDIDATE).all()
    assert not feeds["bias_mask"][:, 3:].any()
    assert feeds["inverse_temperature"] == pytest.approx(10.0)
    assert "negatives" not in feeds and "margin" not in feeds


def test_a_triplet_batch_points_at_its_own_rows():
    objective = Pairs(columns(6), "triplet", margin=0.25)
    feeds = fed(objective, np.array([2, 5]))
    x = feeds["x"][:, 0]
    assert x[feeds["anchors"]].tolist() == [2, 5]
    assert x[feeds["positives"]].tolist() == [102, 105]
    assert x[feeds["negatives"]].tolist() == [202, 205]
    assert feeds["margin"] == np.float32(0.25)
    assert "bias_mask" not in feeds


def test_lengths_of_pairs_are_those_of_the_longest_column():
    class Lengths(ArrayInputs):
        def __init__(self, lengths: list[int]) -> None:
            super().__init__({"x": np.zeros((len(lengths), 1))})
            self.given = np.array(lengths)

        def lengths(self):
            return self.given

    made = {"anchor": Lengths([1, 5]), "positive": Lengths([3, 2])}
    assert Pairs(made, "contrastive").lengths().tolist() == [3, 5]


def test_batches_of_different_widths_are_stacked_with_zeros():
    joined = stack([{"x": np.ones((2, 3), np.int64)}, {"x": np.full((1, 5), 7)}])
    assert joined["x"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [7, 7, 7, 7, 7]]


# --- metrics ----------------------------------------------------------------------------------------------


def split_rows(rows: np.ndarray) -> list[np.ndarray]:
    """Batches of unequal size: a mean of the batches' means would be wrong."""
    return [rows[:1], rows[1:4], rows[4:]]


def test_metrics_of_classification():
    y, logits = np.array([0, 1, 1, 2, 1, 0, 2]), RNG.standard_normal((7, 3)).astype(np.float32) * 3
    rows = RNG.permutation(7)
    metrics = Classification(inputs(7), y, np.array([1, 9, 5], np.float32)).metrics(
        [logits[batch] for batch in split_rows(rows)], split_rows(rows)
    )
    theirs = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(y))
    assert metrics["loss"] == pytest.approx(theirs.item(), rel=1e-5), "not weighted: comparable between runs"
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == y).mean())


def test_metrics_of_regression():
    targets, predicted = RNG.standard_normal((7, 2)).astype(np.float32), RNG.standard_normal((7, 2)).astype(np.float32)
    rows = RNG.permutation(7)
    metrics = Regression(inputs(7), targets).metrics([predicted[batch] for batch in split_rows(rows)], split_rows(rows))
    error = predicted.astype(np.float64) - targets
    assert metrics["mse"] == metrics["loss"] == pytest.approx((error**2).mean(), rel=1e-6)
    assert metrics["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-6)


def test_metrics_of_token_classification_count_tokens_and_no_padding():
    labels = [np.array([0, -100, 1]), np.array([2]), np.array([-100, -100]), np.array([1, 1, 1, 0])]
    logits = RNG.standard_normal((4, 6, 3)).astype(np.float32)
    rows = np.array([3, 0, 2, 1])
    batches = [rows[:1], rows[1:]]
    widths = [4, 3]  # each batch is padded to its own longest
    outputs = [logits[batch, :width] for batch, width in zip(batches, widths, strict=True)]
    metrics = TokenClassification(inputs(4), labels).metrics(outputs, batches)
    flat = [(logits[i, j], y) for i, sample in enumerate(labels) for j, y in enumerate(sample) if y >= 0]
    z, y = torch.from_numpy(np.stack([f[0] for f in flat])), torch.tensor([int(f[1]) for f in flat])
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(z, y).item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx((z.argmax(1) == y).float().mean().item())


def test_metrics_of_pairs_compare_all_with_all():
    """Over all batches together, so that the batch size of an evaluation does not change its result."""
    vectors = RNG.standard_normal((3, 5, 8))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    objective = Pairs(columns(5), "contrastive", temperature=0.2)

    def metrics(batches):
        outputs = [np.concatenate([column[batch] for column in vectors]).astype(np.float32) for batch in batches]
        return objective.metrics(outputs, batches)

    whole, split = metrics([np.arange(5)]), metrics([np.arange(2), np.arange(2, 5)])
    assert whole == pytest.approx(split)
    similarity = torch.from_numpy(vectors[0] @ vectors[1].T)
    theirs = torch.nn.functional.cross_entropy(similarity / 0.2, torch.arange(5))
    assert whole["loss"] == pytest.approx(theirs.item(), rel=1e-5)
    assert whole["recall@1"] == pytest.approx((similarity.argmax(1) == torch.arange(5)).float().mean().item())


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8))
def test_log_sum_exp_does_not_overflow(z: list[float]):
    assert log_sum_exp(np.array(z)) == pytest.approx(torch.logsumexp(torch.tensor(z, dtype=torch.float64), 0).item())
