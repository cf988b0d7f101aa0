"""Products: MatMul, Gemm, Einsum."""

import numpy as np

from tests.gradients.case import Case

_DIFFERENT_RANKS = "ONNX Runtime wants ellipses to stand for the same number of axes"

CASES = [
    *(Case("Det", [(*batch, n, n)]) for batch in [(), (2,), (2, 1)] for n in (2, 3)),
    Case("Det", [(5, 5)]),
    Case("Det", [(2, 1, 1)]),
    Case("Det", [np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 1.0, 1.0]])], wrt=(0,), label="singular"),
    Case("MatMul", [(2, 3, 4), (4, 5)]),
    Case("MatMul", [(3, 4), (4, 5)]),
    Case("MatMul", [(2, 1, 3, 4), (5, 4, 6)]),
    Case("MatMul", [(4,), (4,)]),
    Case("MatMul", [(4,), (2, 4, 3)]),
    Case("MatMul", [(2, 3, 4), (4,)]),
    *(
        Case(
            "Gemm",
            [(4, 3) if ta else (3, 4), (5, 4) if tb else (4, 5), (5,)],
            {"transA": ta, "transB": tb, "alpha": 0.5, "beta": 2.0},
        )
        for ta in (0, 1)
        for tb in (0, 1)
    ),
    Case("Gemm", [(3, 4), (4, 5)]),
    Case("Gemm", [(3, 4), (4, 5), (3, 1)]),
    *(
        Case("Einsum", shapes, {"equation": equation})
        for equation, shapes in [
            ("ij,jk->ik", [(2, 3), (3, 4)]),
            ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
            ("bij, bjk, k -> bi", [(2, 3, 4), (2, 4, 5), (5,)]),
            ("ij->ji", [(2, 3)]),
            ("ijk->j", [(2, 3, 4)]),
            ("ij,kl->il", [(2, 3), (4, 5)]),
            ("i,i->", [(3,), (3,)]),
            ("bj,ja", [(2, 3), (3, 4)]),
            ("ii->i", [(3, 3)]),
            ("ii->", [(3, 3)]),
            ("ii", [(3, 3)]),
            ("iji->j", [(3, 2, 3)]),
            ("iij,j->i", [(3, 3, 2), (2,)]),
            ("iii,i->i", [(2, 2, 2), (2,)]),
            ("iijj,jk->ki", [(2, 2, 3, 3), (3, 4)]),
            (",ij->ij", [(), (2, 3)]),
            ("i,->", [(3,), ()]),
            (",->", [(), ()]),
            ("->", [()]),
            ("...->...", [(2, 3)]),
            ("i...->...", [(2, 3, 4)]),
            ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 2)]),
            ("...ij,...jk->...ik", [(1, 3, 3, 4), (2, 1, 4, 2)]),
            ("...ij,jk->...ik", [(2, 2, 3, 4), (4, 2)]),
            ("...ij,...jk", [(1, 3, 4), (2, 4, 2)]),
            ("...ii,...->...i", [(2, 3, 3), (1,)]),
            ("b...i, ...ij, k -> ...bj", [(2, 1, 3), (4, 3, 2), (3,)]),
        ]
    ),
    *(
        Case("Einsum", shapes, {"equation": equation}, not_run=_DIFFERENT_RANKS)
        for equation, shapes in [
            ("...ij,...jk->...ik", [(2, 3, 4), (5, 1, 4, 2)]),
            ("...,...", [(2, 3), (3,)]),
        ]
    ),
]
