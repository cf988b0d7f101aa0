"""The losses and their derivatives in float64 numpy: what `check` holds the training graphs against.

Each function takes the task's output `y` and the loss inputs that the graph is fed, and returns the loss
and dL/dy in the shape of `y`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


def cross_entropy(y: Floats, feeds: Mapping[str, Array]) -> tuple[float, Floats]:
    """L = −Σ w_i·log p_i[label_i], p = softmax(y); dL/dy_i = w_i·(p_i − onehot(label_i))."""
    labels, weight = feeds["labels"], feeds["loss_weight"].astype(np.float64)
    log_p = log_softmax(y)
    chosen = np.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    return float(-(weight * chosen).sum()), weight[..., None] * (np.exp(log_p) - one_hot(labels, y.shape[-1]))


def mean_squared_error(y: Floats, feeds: Mapping[str, Array]) -> tuple[float, Floats]:
    """L = Σ w_i·mean_j (y_ij − t_ij)²; dL/dy_ij = 2·w_i·(y_ij − t_ij)/n."""
    weight, error = feeds["loss_weight"].astype(np.float64), y - feeds["targets"]
    return float((weight * (error**2).mean(-1)).sum()), 2 * weight[..., None] * error / y.shape[-1]


def cross_entropy_dice(y: Floats, feeds: Mapping[str, Array]) -> tuple[float, Floats]:
    """L = −Σ w_n·log p_n[label_n] + Σ_i v_i·(1 − mean_c D_ic), D = (2·Σ m·p·t + 1)/(Σ m·(p + t) + 1); y `[i, c, h, w]`.

    dL/dp_c = −v·m·(2·t_c − D_c)/(classes·(Σ m·(p_c + t_c) + 1)) of Dice, and through the softmax p∘(dL/dp − Σ_c
    p_c·dL/dp_c).
    """
    weight, dice_weight = (feeds[name].astype(np.float64) for name in ("loss_weight", "dice_weight"))
    z = np.moveaxis(y, 1, -1)
    log_p, t = log_softmax(z), one_hot(feeds["labels"], z.shape[-1])
    p, seen = np.exp(log_p), (weight > 0)[..., None]
    total = (seen * (p + t)).sum((1, 2), keepdims=True) + 1
    dice = (2 * (seen * p * t).sum((1, 2), keepdims=True) + 1) / total
    loss = -(weight * (t * log_p).sum(-1)).sum() + (dice_weight * (1 - dice.mean((1, 2, 3)))).sum()
    dp = -dice_weight[:, None, None, None] * seen * (2 * t - dice) / (z.shape[-1] * total)
    dz = weight[..., None] * (p - t) + p * (dp - (p * dp).sum(-1, keepdims=True))
    return float(loss), np.moveaxis(dz, -1, 1)


def heatmap(y: Floats, feeds: Mapping[str, Array]) -> tuple[float, Floats]:
    """L = −Σ w_ik·Σ_n q_ikn·log p_ikn, p = softmax over the places n of y `[i, k, h, w]`; dL/dy = w·(Σ q·p − q)."""
    rows = (*y.shape[:2], -1)
    weight, q = feeds["loss_weight"].astype(np.float64)[..., None], feeds["targets"].astype(np.float64).reshape(rows)
    log_p = log_softmax(y.reshape(rows))
    dy = weight * (q.sum(-1, keepdims=True) * np.exp(log_p) - q)
    return float(-(weight * q * log_p).sum()), dy.reshape(y.shape)


def contrastive(y: Floats, feeds: Mapping[str, Array]) -> tuple[float, Floats]:
    """L = −Σ w_k·log softmax_j(s_kj)[positive_k], s_kj = <y_anchor_k, y_j>/τ + mask_kj."""
    anchors, positives = feeds["anchors"], feeds["positives"]
    weight, sharpness = feeds["loss_weight"].astype(np.float64), float(feeds["inverse_temperature"])
    log_p = log_softmax(y[anchors] @ y.T * sharpness + feeds["bias_mask"])
    chosen = np.take_along_axis(log_p, positives[:, None], -1)[:, 0]
    ds = weight[:, None] * (np.exp(log_p) - one_hot(positives, len(y))) * sharpness
    dy = ds.T @ y[anchors]
    np.add.at(dy, anchors, ds @ y)
    return float(-(weight * chosen).sum()), dy


def triplet(y: Floats, feeds: Mapping[str, Array]) -> tuple[float, Floats]:
    """L = Σ w_k·max(0, |a − p| − |a − n| + margin), a, p, n the rows of y that k names."""
    weight, dy = feeds["loss_weight"].astype(np.float64), np.zeros_like(y)
    near, near_slope = _distance(y[feeds["anchors"]] - y[feeds["positives"]])
    far, far_slope = _distance(y[feeds["anchors"]] - y[feeds["negatives"]])
    hinge = near - far + float(feeds["margin"])
    factor: Floats = (weight * (hinge > 0))[:, None]
    np.add.at(dy, feeds["anchors"], factor * (near_slope - far_slope))
    np.add.at(dy, feeds["positives"], -factor * near_slope)
    np.add.at(dy, feeds["negatives"], factor * far_slope)
    return float((weight * np.maximum(hinge, 0)).sum()), dy


def _distance(gap: Floats) -> tuple[Floats, Floats]:
    """The length of each row, and its derivative with respect to the row."""
    distance: Floats = np.sqrt((gap**2).sum(-1) + 1e-12)
    return distance, gap / distance[:, None]


def weighted_sum(y: Floats, feeds: Mapping[str, Array]) -> tuple[float, Floats]:
    """L = Σ w_i·y_i of losses y that a graph made; dL/dy = w."""
    weight = feeds["loss_weight"].astype(np.float64)
    return float((weight * y).sum()), weight


REFERENCES: dict[str, Callable[[Floats, Mapping[str, Array]], tuple[float, Floats]]] = {
    "cross-entropy": cross_entropy,
    "mse": mean_squared_error,
    "cross-entropy-dice": cross_entropy_dice,
    "heatmap": heatmap,
    "contrastive": contrastive,
    "triplet": triplet,
}


def log_softmax(z: Floats) -> Floats:
    """log softmax along the last axis."""
    shifted = z - z.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def one_hot(index: Array, size: int) -> Floats:
    """Ones at `index` along a new last axis."""
    return np.asarray(index[..., None] == np.arange(size), np.float64)
