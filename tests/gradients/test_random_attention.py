"""Attention and rotary embedding of heads, lengths, masks and options drawn at random."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.drawing import few, ints, try_both

SMALL = st.integers(1, 3)


@st.composite
def attentions(draw) -> Case:
    """Queries that share key heads or not, by head or merged, with a mask, a past, a cap, or none of these."""
    batch, queries, past, size, wide, key_heads, group = (draw(SMALL) for _ in range(7))
    keys = queries if draw(st.booleans()) else draw(SMALL)
    heads, cached = key_heads * group, draw(st.booleans())
    how: dict = {}
    if draw(st.booleans()):
        how["scale"] = 0.7
    if draw(st.booleans()):
        how["softcap"] = 1.3
    if draw(st.booleans()):
        how["is_causal"] = 1
    total = keys + (past if cached else 0)
    if draw(st.booleans()):
        inputs = [(batch, heads, queries, size), (batch, key_heads, keys, size), (batch, key_heads, keys, wide)]
    else:
        how |= {"q_num_heads": heads, "kv_num_heads": key_heads}
        inputs = [(batch, queries, heads * size), (batch, keys, key_heads * size), (batch, keys, key_heads * wide)]
    mask = draw(st.sampled_from(["none", "number", "truth"]))
    shape = draw(st.sampled_from([(queries, total), (batch, 1, queries, total), (batch, heads, queries, total)]))
    if mask == "number":
        inputs.append(shape)
    elif mask == "truth":
        seen = np.random.default_rng(draw(st.integers(0, 99))).random(shape) < 0.7
        inputs.append(seen)
    if not cached:
        return Case("Attention", inputs, how)
    inputs += [None] if mask == "none" else []
    inputs += [(batch, key_heads, past, size), (batch, key_heads, past, wide)]
    return Case("Attention", inputs, how, outputs=3, cotangents=draw(st.sampled_from([(0,), (0, 1, 2)])))


@few
@given(case=attentions())
def test_attention(case):
    try_both(case)


@few
@given(batch=SMALL, heads=SMALL, length=SMALL, half=SMALL, rest=st.integers(0, 2), how=st.data())
def test_rotary_embedding(batch, heads, length, half, rest, how):
    attributes: dict = {"interleaved": how.draw(st.integers(0, 1))}
    size = 2 * half + 2 * rest
    if rest:
        attributes["rotary_embedding_dim"] = 2 * half
    if how.draw(st.booleans()):
        x = (batch, heads, length, size)
    else:
        x, attributes["num_heads"] = (batch, length, heads * size), heads
    if how.draw(st.booleans()):
        rng = np.random.default_rng(how.draw(st.integers(0, 99)))
        inputs = [x, (5, half), (5, half), ints(rng.integers(0, 5, (batch, length)))]
    else:
        inputs = [x, (batch, length, half), (batch, length, half)]
    try_both(Case("RotaryEmbedding", inputs, attributes))
