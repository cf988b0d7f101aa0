"""Constants of TFLite files as real numbers and back: what is kept bit for bit, and what scales do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.errors import AdapterError

pytest.importorskip("tflite", reason="needs the TFLite schema: edgelora[tflite]")

from edgelora_tools.interop.tflite_weights import real_numbers, stored, stored_bias
from edgelora_tools.sources.tflite.model import Quantization, Tensor


def codes(seed: int, dtype: type, shape=(4, 3, 2), axis: int | None = 0, zero: int = 0) -> Tensor:
    """A tensor of random codes, with scales along `axis` or one for all."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    data = rng.integers(max(info.min, -127), info.max, shape, endpoint=True).astype(dtype)
    scale = np.exp(rng.normal(-4, 1, 1 if axis is None else shape[axis])).astype(np.float32)
    told = Quantization(scale, np.full(scale.size, zero, np.int64), axis or 0)
    return Tensor("w", shape, False, np.dtype(dtype), data, told, None)


KINDS = st.sampled_from([(np.int8, 0), (np.uint8, 128), (np.uint8, 3)])


@given(seed=st.integers(0, 999), kind=KINDS, axis=st.sampled_from([None, 0, 2]))
@settings(max_examples=60)
def test_what_stays_keeps_its_bits(seed, kind, axis):
    tensor = codes(seed, kind[0], axis=axis, zero=kind[1])
    same = stored(tensor, real_numbers(tensor))
    assert tensor.quantization is not None and same.scale is not None and tensor.data is not None
    assert same.data.tobytes() == tensor.data.tobytes() and same.scale.tobytes() == tensor.quantization.scale.tobytes()
    assert (same.growth == 1).all()


@given(seed=st.integers(0, 999), kind=KINDS, axis=st.sampled_from([None, 0, 2]), size=st.sampled_from([0.1, 0.5, 4.0]))
@settings(max_examples=60)
def test_new_numbers_are_near_in_sum_nearer_and_scales_grow_only_where_they_must(seed, kind, axis, size):
    tensor = codes(seed, kind[0], axis=axis, zero=kind[1])
    told, now = tensor.quantization, real_numbers(tensor)
    assert told is not None
    wanted = now + size * np.abs(now).max() * np.random.default_rng(seed).standard_normal(now.shape)
    made = stored(tensor, wanted)
    assert made.scale is not None and (made.growth >= 1).all()
    after = replace(tensor, data=made.data, quantization=replace(told, scale=made.scale))
    shape = [1] * 3
    shape[told.axis] = -1 if made.scale.size > 1 else 1
    gaps = (real_numbers(after) - wanted) / made.scale.reshape(shape)
    assert (np.abs(gaps) <= 1.0001).all()
    assert (np.abs(gaps.reshape(4, -1).sum(1)) <= 0.5001).all() or (kind[1] == 3 and size == 4.0)
    low, high = (-127 if kind[0] is np.int8 else 0), np.iinfo(kind[0]).max
    nearest = np.rint(wanted / told.scale.astype(np.float64).reshape(shape)) + kind[1]
    beyond = ((nearest > high) | (nearest < low)).any(axis=tuple(i for i in range(3) if shape[i] == 1))
    assert np.array_equal((made.growth > 1).reshape(beyond.shape), beyond)


def test_a_bias_in_codes_follows_the_scales_of_its_weight():
    rng = np.random.default_rng(0)
    scale, data = np.array([1e-4, 2e-4], np.float32), rng.integers(-9000, 9000, 2).astype(np.int32)
    bias = Tensor("b", (2,), False, np.dtype(np.int32), data, Quantization(scale, np.zeros(2, np.int64), 0), None)
    growth = np.array([1.0, 1.75])
    made = stored_bias(bias, None, growth)
    assert made.data[0] == data[0] and made.scale is not None
    assert np.allclose(made.scale, scale * growth)
    assert (np.abs(made.data * made.scale.astype(np.float64) - real_numbers(bias)) <= 0.51 * made.scale).all()
    assert stored_bias(bias, None, np.ones(2)).data.tobytes() == data.tobytes()


@pytest.mark.parametrize(("dtype", "number"), [(np.float16, 1e5), (np.float32, np.nan), (np.int16, 1.0)])
def test_numbers_that_a_type_does_not_hold_are_refused(dtype, number):
    tensor = Tensor("layer/kernel", (2,), False, np.dtype(dtype), np.zeros(2, dtype), None, None)
    with pytest.raises(AdapterError, match="layer/kernel"):
        stored(tensor, np.array([0.0, number]))


def test_halves_and_floats_keep_what_does_not_change():
    for dtype in (np.float16, np.float32):
        held = np.array([-0.0, 1.0, 2.0], dtype)
        made = stored(Tensor("w", (3,), False, np.dtype(dtype), held, None, None), np.array([0.0, 1.0, 2.5]))
        assert made.data.dtype == dtype and np.signbit(made.data[0]) and made.data[2] == 2.5
