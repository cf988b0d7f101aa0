"""Products of shapes, broadcasts and equations drawn at random."""

from hypothesis import assume, given
from hypothesis import strategies as st

from tests.gradients.case import Case
from tests.gradients.drawing import broadcast, few, shapes, try_both

LETTERS = "abcA"


@few
@given(
    batch=broadcast(2), sizes=st.tuples(*[st.integers(1, 3)] * 3), vectors=st.sampled_from([(), (), (0,), (1,), (0, 1)])
)
def test_matmul(batch, sizes, vectors):
    m, k, n = sizes
    a = (k,) if 0 in vectors else (*batch[0], m, k)
    b = (k,) if 1 in vectors else (*batch[1], k, n)
    try_both(Case("MatMul", [a, b]))


@few
@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 3),
    flags=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    scales=st.tuples(*[st.sampled_from([0.5, 1.0, -2.0])] * 2),
    bias=st.sampled_from([None, (), (1,), "n", "m1", "mn"]),
)
def test_gemm(sizes, flags, scales, bias):
    m, k, n = sizes
    a, b = (k, m) if flags[0] else (m, k), (n, k) if flags[1] else (k, n)
    c = {"n": (n,), "m1": (m, 1), "mn": (m, n)}.get(bias, bias)
    how = {"transA": flags[0], "transB": flags[1], "alpha": scales[0], "beta": scales[1]}
    try_both(Case("Gemm", [a, b, *([] if c is None else [c])], how))


@st.composite
def equations(draw) -> tuple[str, list[tuple[int, ...]]]:
    """An equation of letters that may repeat within a term and between terms, and of ellipses that broadcast."""
    sizes = {c: draw(st.integers(1, 3)) for c in LETTERS}
    common = draw(shapes(0, 2))
    terms, operands = [], []
    for _ in range(draw(st.integers(1, 3))):
        letters = draw(st.lists(st.sampled_from(LETTERS), max_size=3))
        term, shape = "".join(letters), tuple(sizes[c] for c in letters)
        if draw(st.booleans()):
            at = draw(st.integers(0, len(letters)))
            mine = tuple(d if draw(st.booleans()) else 1 for d in common)[draw(st.integers(0, len(common))) :]
            term, shape = f"{term[:at]}...{term[at:]}", (*shape[:at], *mine, *shape[at:])
        terms.append(term)
        operands.append(shape)
    left = ",".join(terms)
    if draw(st.booleans()):
        return left, operands
    kept = draw(st.permutations(sorted(set(left) - set(",."))))
    out = kept[: draw(st.integers(0, len(kept)))]
    if "..." in left:
        out.insert(draw(st.integers(0, len(out))), "...")
    return f"{left}->{''.join(out)}", operands


@few
@given(drawn=equations())
def test_einsum(drawn):
    equation, operands = drawn
    assume(equation)
    try_both(Case("Einsum", operands, {"equation": equation}))


@few
@given(batch=shapes(0, 2), n=st.integers(1, 4))
def test_determinants(batch, n):
    try_both(Case("Det", [(*batch, n, n)]))
