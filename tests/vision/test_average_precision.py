"""Average precision against COCO's own evaluation where it is installed, and a transcription of it everywhere."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelora.vision.average_precision import RECALLS, THRESHOLDS, Found, Truth, average_precision, summary


def pictures(seed: int, count: int = 6, classes: int = 3) -> tuple[list[Found], list[Truth]]:
    """Objects, and detections that miss, double and confuse some of them; scores repeat."""
    rng = np.random.default_rng(seed)
    found: list[Found] = []
    truths: list[Truth] = []
    for _ in range(count):
        n = int(rng.integers(0, 6))
        low = rng.uniform(0, 60, (n, 2))
        boxes = np.concatenate([low, low + rng.uniform(5, 40, (n, 2))], axis=1)
        labels = rng.integers(0, classes, n)
        truths.append(Truth(boxes, labels, rng.random(n) < 0.2))
        which = rng.integers(0, n, int(rng.integers(0, 3 * n + 1))) if n else np.zeros(0, np.int64)
        moved = boxes[which] + rng.normal(0, 3, (len(which), 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        named = np.where(rng.random(len(which)) < 0.8, labels[which], rng.integers(0, classes, len(which)))
        found.append(Found(moved, named, rng.integers(1, 10, len(which)) / 10.0))
    return found, truths


def reference(found: list[Found], truths: list[Truth], label: int, threshold: float) -> float:
    """cocoeval.py's evaluateImg and accumulate for one class and one threshold, in plain Python."""
    scores: list[float] = []
    flags: list[tuple[bool, bool]] = []
    positives = 0
    for f, t in zip(found, truths, strict=True):
        dt = [i for i in range(len(f.scores)) if f.classes[i] == label]
        dt.sort(key=lambda i: -f.scores[i])
        gt = [i for i in range(len(t.classes)) if t.classes[i] == label]
        gt.sort(key=lambda i: bool(t.ignored[i]))
        positives += sum(not t.ignored[i] for i in gt)
        matched: set[int] = set()
        for d in dt[:100]:
            best, m = min(threshold, 1 - 1e-10), -1
            for g in gt:
                if g in matched and not t.ignored[g]:
                    continue
                if m > -1 and not t.ignored[m] and t.ignored[g]:
                    break
                a, b = f.boxes[d], t.boxes[g]
                wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                inner = max(wide, 0.0) * max(high, 0.0)
                area, other = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
                value = inner / (area if t.ignored[g] else area + other - inner)
                if value < best:
                    continue
                best, m = value, g
            if m > -1:
                matched.add(m)
            scores.append(float(f.scores[d]))
            flags.append((m > -1, m > -1 and bool(t.ignored[m])))
    if not positives:
        return float("nan")
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    tp = fp = 0
    recall: list[float] = []
    precision: list[float] = []
    for i in order:
        hit, ignored = flags[i]
        tp, fp = tp + (hit and not ignored), fp + (not hit)
        recall.append(tp / positives)
        precision.append(tp / (tp + fp) if tp + fp else 0.0)
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    total = 0.0
    for r in RECALLS:
        i = next((i for i, value in enumerate(recall) if value >= r), None)
        total += 0.0 if i is None else precision[i]
    return total / len(RECALLS)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_is_cocos_by_transcription(seed: int) -> None:
    found, truths = pictures(seed)
    result = average_precision(found, truths, 3)
    for i, threshold in enumerate(THRESHOLDS):
        for label in range(3):
            expected = reference(found, truths, label, float(threshold))
            np.testing.assert_allclose(result[i, label], expected, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("seed", range(10))
def test_is_cocos(seed: int) -> None:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    found, truths = pictures(seed, count=10)
    annotations: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    for image, (f, t) in enumerate(zip(found, truths, strict=True), 1):
        for box, label, ignored in zip(t.boxes, t.classes, t.ignored, strict=True):
            sides = box[2:] - box[:2]
            one: dict[str, object] = {
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": int(label),
                "iscrowd": int(ignored),
            }
            annotations.append(one | {"bbox": [*box[:2], *sides], "area": float(sides.prod())})
        for box, label, score in zip(f.boxes, f.classes, f.scores, strict=True):
            one: dict[str, object] = {"image_id": image, "category_id": int(label), "score": float(score)}
            results.append(one | {"bbox": [*box[:2], *(box[2:] - box[:2])]})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        images = [{"id": image} for image in range(1, len(found) + 1)]
        categories = [{"id": label, "name": str(label)} for label in range(3)]
        truth.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        truth.createIndex()
        judge = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    ours = summary(found, truths, 3)
    assert ours == pytest.approx({"AP": judge.stats[0], "AP50": judge.stats[1]}, abs=1e-9)
    everything: SimpleNamespace = SimpleNamespace(precision=judge.eval["precision"][:, :, :, 0, 2].mean(1))
    result = average_precision(found, truths, 3)
    np.testing.assert_allclose(np.where(np.isnan(result), -1.0, result), everything.precision, atol=1e-9)


def test_perfect_detections_and_none() -> None:
    truth = Truth(np.array([[0.0, 0, 10, 10]]), np.zeros(1, np.int64), np.zeros(1, np.bool_))
    nothing = Found(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
    perfect = Found(truth.boxes, truth.classes, np.ones(1))
    assert summary([perfect], [truth], 2) == {"AP50": 1.0, "AP": 1.0}
    assert summary([nothing], [truth], 2) == {"AP50": 0.0, "AP": 0.0}
