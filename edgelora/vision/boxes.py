"""Boxes `[x1, y1, x2, y2]`: how far they overlap, with gradients, and which of many are doubles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
OVERLAPS = ("iou", "giou", "diou", "ciou")
_TINY = 1e-12


def areas(boxes: Reals) -> Reals:
    """The areas of boxes `[..., 4]`; 0 where one ends before it begins."""
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), axis=-1)


def corners(centres: Reals) -> Reals:
    """`[cx, cy, width, height]` as `[x1, y1, x2, y2]`, each `[..., 4]`."""
    half = centres[..., 2:] / 2
    return np.concatenate([centres[..., :2] - half, centres[..., :2] + half], axis=-1)


def centres(boxes: Reals) -> Reals:
    """`[x1, y1, x2, y2]` as `[cx, cy, width, height]`, each `[..., 4]`."""
    return np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=-1)


def overlaps(a: Reals, b: Reals, whole: NDArray[np.bool_] | None = None) -> Reals:
    """Intersection over union of each of `a` `[n, 4]` and each of `b` `[m, 4]`: `[n, m]`.

    Where `whole` `[m]` is true, it is over the area of `a` alone: how much of it lies in a region of `b`.
    """
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.prod(np.maximum(high - low, 0.0), axis=-1)
    own = areas(a)[:, None]
    union = own + areas(b)[None] - inner
    if whole is not None:
        union = np.where(whole[None], own, union)
    return inner / np.maximum(union, _TINY)


def overlap(predicted: Reals, target: Reals, kind: str = "iou") -> tuple[Reals, Reals]:
    """How far each box of `predicted` meets its `target`, `[n, 4]` both: `[n]`, and the gradient for `predicted`.

    iou: I/U. giou: I/U − (C − U)/C with C the area of the box around both (arXiv:1902.09630). diou: I/U − ρ²/c², the
    distance of the centres over the diagonal of that box; ciou: diou − α·v with v = 4/π²·(atan(w'/h') − atan(w/h))² and
    α = v/(1 − iou + v), which counts as a constant (both arXiv:1911.08287).
    """
    (px1, py1, px2, py2), (tx1, ty1, tx2, ty2) = predicted.T, target.T
    pw, ph, tw, th = px2 - px1, py2 - py1, tx2 - tx1, ty2 - ty1
    iw, ih = np.minimum(px2, tx2) - np.maximum(px1, tx1), np.minimum(py2, ty2) - np.maximum(py1, ty1)
    meet = (iw > 0) & (ih > 0)
    inner = np.where(meet, iw * ih, 0.0)
    union = np.maximum(pw * ph + tw * th - inner, _TINY)
    d_inner = meet * np.stack([-ih * (px1 > tx1), -iw * (py1 > ty1), ih * (px2 < tx2), iw * (py2 < ty2)])
    d_union = np.stack([-ph, -pw, ph, pw]) - d_inner
    value = inner / union
    slope = (d_inner - value * d_union) / union
    if kind == "iou":
        return value, slope.T
    cw, ch = np.maximum(px2, tx2) - np.minimum(px1, tx1), np.maximum(py2, ty2) - np.minimum(py1, ty1)
    d_cw = np.stack([-1.0 * (px1 < tx1), np.zeros_like(cw), 1.0 * (px2 > tx2), np.zeros_like(cw)])
    d_ch = np.stack([np.zeros_like(ch), -1.0 * (py1 < ty1), np.zeros_like(ch), 1.0 * (py2 > ty2)])
    if kind == "giou":
        around = np.maximum(cw * ch, _TINY)
        share = union / around
        return value - 1 + share, (slope + (d_union - share * (d_cw * ch + cw * d_ch)) / around).T
    dx, dy = (px1 + px2 - tx1 - tx2) / 2, (py1 + py2 - ty1 - ty2) / 2
    diagonal = np.maximum(cw**2 + ch**2, _TINY)
    distance = (dx**2 + dy**2) / diagonal
    d_distance = (np.stack([dx, dy, dx, dy]) - 2 * distance * (cw * d_cw + ch * d_ch)) / diagonal
    if kind == "diou":
        return value - distance, (slope - d_distance).T
    if kind != "ciou":
        raise ValueError(f"unknown overlap {kind!r}; one of {', '.join(OVERLAPS)}")
    turn = np.arctan2(tw, th) - np.arctan2(pw, ph)
    v = 4 / np.pi**2 * turn**2
    alpha = v / np.maximum(1 - value + v, _TINY)
    lean = 8 / np.pi**2 * turn / np.maximum(pw**2 + ph**2, _TINY)
    d_v = np.stack([lean * ph, -lean * pw, -lean * ph, lean * pw])
    return value - distance - alpha * v, (slope - d_distance - alpha * d_v).T


def suppress(boxes: Reals, scores: Reals, classes: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Which of `boxes` `[n, 4]` remain, best first: none overlaps a better one of its class by more than `threshold`.

    Equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    double = overlaps(boxes[order], boxes[order]) > threshold
    double &= classes[order][:, None] == classes[order][None]
    kept = np.ones(len(order), np.bool_)
    for i in range(len(order)):
        if kept[i]:
            kept[i + 1 :] &= ~double[i, i + 1 :]
    return order[kept]
