"""Masks to runs and back, beside COCO's definition."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgelora.vision.runs import from_runs, to_runs


@given(mask=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans()))
def test_runs_are_cocos_there_and_back(mask):
    runs = to_runs(mask)
    wanted: list[int] = []  # pycocotools' documented form: columns first, beginning with pixels outside
    for inside, group in groupby(mask.T.ravel().tolist()):
        wanted += [0] if inside and not wanted else []
        wanted.append(len(list(group)))
    assert runs == {"size": list(mask.shape), "counts": wanted}
    np.testing.assert_array_equal(from_runs(runs), mask)
