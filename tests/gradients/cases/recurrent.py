"""LSTM, GRU and RNN: directions, lengths, optional inputs, activations, and every attribute."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.gradients.case import Case, Sampler

_BATCH_FIRST = "ONNX Runtime's kernels take sequences with the time first only"
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TIME, BATCH, INPUTS, HIDDEN = 4, 3, 2, 3
LENS = np.array([4, 2, 3], np.int32)


def recurrent(
    op: str,
    b: bool = True,
    lens: np.ndarray | None = None,
    h: bool = False,
    c: bool = False,
    p: bool = False,
    cotangents: tuple[int, ...] | None = None,
    outputs: int | None = None,
    sizes: tuple[int, int, int, int] = (TIME, BATCH, INPUTS, HIDDEN),
    label: str = "",
    **attributes: Any,
) -> Case:
    """A case with these optional inputs; all that are real numbers are differentiated."""
    time, batch, inputs, hidden = sizes
    d, g = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op]
    state = (batch, d, hidden) if attributes.get("layout") else (d, batch, hidden)
    given: list[Sampler | None] = [
        (batch, time, inputs) if attributes.get("layout") else (time, batch, inputs),
        (d, g * hidden, inputs),
        (d, g * hidden, hidden),
        (d, 2 * g * hidden) if b else None,
        lens,
        state if h else None,
    ]
    if op == "LSTM":
        given += [state if c else None, (d, 3 * hidden) if p else None]
    while given[-1] is None:
        given.pop()
    kinds = [name for name, there in zip("bhcp", (b, h, c, p), strict=True) if there]
    marks = "".join(kinds) + ("n" if lens is not None else "") + ("" if cotangents is None else str(cotangents))
    return Case(
        op,
        given,
        {"hidden_size": hidden, **attributes},
        outputs=outputs or (3 if op == "LSTM" else 2),
        cotangents=cotangents,
        label=f" {marks}{label}",
        not_run=_BATCH_FIRST if attributes.get("layout") else "",
    )


_NUMBERS = {
    "Relu": (), "Tanh": (), "Sigmoid": (), "Affine": (0.7, 0.2), "LeakyRelu": (0.3,), "ThresholdedRelu": (0.1,),
    "ScaledTanh": (1.3, 0.6), "HardSigmoid": (0.3, 0.4), "Elu": (0.6,), "Softsign": (), "Softplus": (),
}  # fmt: skip
_MIXED = {
    "LSTM": ("HardSigmoid", "Elu", "Affine", "Sigmoid", "ScaledTanh", "LeakyRelu"),
    "GRU": ("HardSigmoid", "Elu", "Affine", "LeakyRelu"),
    "RNN": ("Elu", "ScaledTanh"),
}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def with_activations(op: str, names: tuple[str, ...], **others: Any) -> Case:
    """These activations with numbers that are not the defaults."""
    numbers = [_NUMBERS[name] for name in names]
    alpha, beta = [n[0] for n in numbers if n], [n[1] for n in numbers if len(n) > 1]
    attributes: dict[str, Any] = {"activations": list(names)}
    if alpha:
        attributes["activation_alpha"] = alpha
    if beta:
        attributes["activation_beta"] = beta
    return recurrent(op, **attributes, **others)


def _each(op: str) -> list[Case]:
    cell: dict[str, Any] = {"c": True} if op == "LSTM" else {}
    last = 2 if op == "LSTM" else 1
    return [
        recurrent(op),
        recurrent(op, b=False),
        recurrent(op, h=True, **cell, direction="reverse"),
        recurrent(op, h=True, **cell, direction="bidirectional"),
        *(recurrent(op, lens=LENS, h=True, **cell, direction=d) for d in ("forward", "reverse", "bidirectional")),
        recurrent(op, lens=LENS, direction="reverse"),
        recurrent(op, lens=np.array([0, 4, 1], np.int32), h=True, **cell, direction="bidirectional", label=" empty"),
        recurrent(op, lens=np.array([2, 1, 1], np.int32), direction="bidirectional", label=" all padded"),
        recurrent(op, cotangents=(0,)),
        recurrent(op, outputs=1, label=" one output"),
        recurrent(op, cotangents=(1,), lens=LENS, direction="bidirectional"),
        recurrent(op, cotangents=(0, last), h=True),
        recurrent(op, sizes=(1, 2, 3, 2), h=True, **cell, direction="bidirectional"),
        recurrent(op, sizes=(3, 1, 1, 1), h=True, **cell),
        recurrent(op, clip=0.4, h=True),
        recurrent(op, lens=LENS, h=True, **cell, layout=1, direction="bidirectional"),
        recurrent(op, layout=1),
        *(
            with_activations(op, tuple(name if i == k else default for i, default in enumerate(_DEFAULTS[op])))
            for k in range(len(_DEFAULTS[op]))
            for name in _NUMBERS
        ),
        with_activations(op, _MIXED[op], direction="bidirectional", h=True),
    ]


CASES = [
    *_each("RNN"),
    *_each("GRU"),
    recurrent("GRU", linear_before_reset=1),
    recurrent("GRU", b=False, linear_before_reset=1, h=True),
    recurrent("GRU", linear_before_reset=1, lens=LENS, h=True, direction="bidirectional"),
    recurrent("GRU", linear_before_reset=1, clip=0.5, cotangents=(1,), direction="reverse"),
    with_activations("GRU", ("Softplus", "Softsign"), linear_before_reset=1),
    *_each("LSTM"),
    recurrent("LSTM", p=True),
    recurrent("LSTM", p=True, b=False, h=True, c=True, lens=LENS, direction="bidirectional"),
    recurrent("LSTM", p=True, lens=LENS, direction="reverse", c=True),
    recurrent("LSTM", input_forget=1, h=True, c=True),
    recurrent("LSTM", input_forget=1, p=True, lens=LENS, direction="bidirectional"),
    recurrent("LSTM", p=True, clip=0.6, c=True),
    recurrent("LSTM", cotangents=(2,), c=True),
    recurrent("LSTM", outputs=2, lens=LENS, label=" two outputs"),
    recurrent("LSTM", cotangents=(1, 2), lens=LENS, h=True, c=True, direction="reverse"),
]
