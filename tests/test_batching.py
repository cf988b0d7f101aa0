"""The order of an epoch: every sample once, the same for the same seed, little padding, still shuffled."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgelora.batching import epoch_batches, shares

lengths = st.lists(st.integers(1, 128), max_size=300).map(lambda x: np.asarray(x, np.int64))


@given(lengths, st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 100), st.booleans())
def test_every_sample_occurs_once_in_batches_of_the_right_size(
    sizes: np.ndarray, batch_size: int, seed: int, epoch: int, by_length: bool
):
    batches = epoch_batches(sizes, batch_size, seed, epoch, by_length)
    rows = np.concatenate([np.zeros(0, np.int64), *batches])
    assert sorted(rows.tolist()) == list(range(len(sizes)))
    counts = sorted(len(batch) for batch in batches)
    assert len(batches) == -(-len(sizes) // batch_size)
    assert all(count == batch_size for count in counts[1:])
    again = epoch_batches(sizes, batch_size, seed, epoch, by_length)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def padding(sizes: np.ndarray, by_length: bool, seed: int) -> float:
    """The share of a padded epoch that is padding."""
    batches = epoch_batches(sizes, 16, seed, 0, by_length)
    padded = sum(sizes[batch].max() * len(batch) for batch in batches)
    return float(1 - sizes.sum() / padded)


@given(st.integers(0, 2**31), st.integers(100, 2000))
def test_batches_by_length_hold_less_padding(seed: int, samples: int):
    sizes = np.random.default_rng(seed).integers(4, 64, samples)
    assert padding(sizes, True, seed) < 0.6 * padding(sizes, False, seed)


def test_samples_of_one_length_and_many_lengths_are_shuffled_between_epochs_and_seeds():
    sizes = np.random.default_rng(0).integers(4, 64, 640)
    for by_length in (True, False):
        compositions = {
            frozenset(frozenset(batch.tolist()) for batch in epoch_batches(sizes, 16, seed, epoch, by_length))
            for seed in (0, 1)
            for epoch in (0, 1, 2)
        }
        assert len(compositions) == 6


def test_batches_do_not_come_in_order_of_length():
    sizes = np.random.default_rng(0).integers(4, 64, 640)
    means = np.asarray([sizes[batch].mean() for batch in epoch_batches(sizes, 16, 0, 0, True)])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


@given(st.lists(st.integers(0, 128), min_size=1, max_size=80), st.integers(1, 6), st.integers(0, 9))
def test_shares_are_the_rows_in_parts_of_similar_work(sizes: list[int], count: int, seed: int):
    lengths = np.asarray(sizes, np.int64)
    rows = np.random.default_rng(seed).permutation(len(sizes))
    parts = shares(rows, lengths, count)
    assert sorted(np.concatenate(parts).tolist()) == sorted(rows.tolist())
    assert 1 <= len(parts) <= count
    assert all(len(part) for part in parts)
    work = [int(np.maximum(lengths[part], 1).sum()) for part in parts]
    assert max(work) <= sum(work) / count + max(1, *sizes)


@given(st.integers(1, 80), st.integers(1, 12), st.integers(1, 128))
def test_shares_of_samples_of_one_length_differ_by_one_at_most(rows: int, count: int, length: int):
    parts = shares(np.arange(rows), np.full(rows, length, np.int64), count)
    sizes = [len(part) for part in parts]
    assert len(sizes) == min(rows, count)
    assert max(sizes) - min(sizes) <= 1
    belongs = [(2 * row + 1) * count // (2 * rows) for row in range(rows)]
    assert [part.tolist() for part in parts] == [
        [row for row in range(rows) if belongs[row] == part] for part in sorted(set(belongs))
    ]
