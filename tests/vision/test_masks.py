"""Counts, IoU and Dice against sets of pixels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgelora.vision.masks import IGNORED, confusion, dice, iou, mean_of_present

CLASSES = 4


@given(
    truth=arrays(np.uint8, (5, 7), elements=st.sampled_from([*range(CLASSES), IGNORED])),
    predicted=arrays(np.uint8, (5, 7), elements=st.sampled_from([*range(CLASSES), IGNORED])),
)
def test_shares_are_those_of_sets_of_pixels(truth, predicted):
    counts = confusion(truth, predicted, CLASSES)
    places = {i for i in np.ndindex(truth.shape) if truth[i] != IGNORED and predicted[i] != IGNORED}
    assert counts.sum() == len(places)
    ious, dices = iou(counts), dice(counts)
    for c in range(CLASSES):
        a, b = {i for i in places if truth[i] == c}, {i for i in places if predicted[i] == c}
        if a | b:
            assert ious[c] == len(a & b) / len(a | b)
            assert dices[c] == 2 * len(a & b) / (len(a) + len(b))
        else:
            assert np.isnan(ious[c])
            assert np.isnan(dices[c])
    present = [x for x in ious if not np.isnan(x)]
    mean = mean_of_present(ious)
    assert np.isclose(mean, np.mean(present)) if present else np.isnan(mean)
