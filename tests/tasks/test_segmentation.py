"""Segmentation: thresholds on stored confidence, ignored pixels, mIoU against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.data.augment import Placement
from pipeline.stores.labels import LabelSpace, Value
from tasks.segmentation.label import IGNORE, TaskLabel
from tasks.segmentation.model import TaskModel

SPACE = LabelSpace("segmentation", ("road", "sky", "tree", "car"))
LABEL, TASK = TaskLabel(SPACE), TaskModel(SPACE)


def mask(classes: NDArray[np.int64], confidence: NDArray[np.float64] | float = 1.0) -> Value:
    return {
        "classes": classes.astype(np.uint16),
        "confidence": np.broadcast_to(np.asarray(confidence, np.float32), classes.shape).copy(),
    }


def random_mask(seed: int, shape: tuple[int, int] = (9, 13), unknown: float = 0.2) -> Value:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, shape)
    classes[rng.random(shape) < unknown] = IGNORE
    return mask(classes, rng.random(shape))


@given(st.integers(0, 1000), st.sampled_from([1, 254, 255, 256, 300]))
def test_encode_keeps_classes_and_256_levels_of_confidence(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, count, (7, 5))
    classes[rng.random((7, 5)) < 0.2] = IGNORE
    classes[0, 0] = count - 1
    value = mask(classes, rng.random((7, 5)))
    label = TaskLabel(LabelSpace("segmentation", tuple(map(str, range(count)))))
    back = label.decode(label.encode(value))
    np.testing.assert_array_equal(back["classes"], value["classes"])
    assert np.abs(back["confidence"] - value["confidence"]).max() <= 1 / 510 + 1e-7


@given(st.floats(0, 1, width=32))
def test_decode_keeps_pixel_at_threshold(threshold: float) -> None:
    row = LABEL.encode(mask(np.zeros((1, 1), np.int64), threshold))
    assert LABEL.decode(row, threshold)["classes"][0, 0] == 0


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_decode_drops_pixel_below_threshold_up_to_rounding(confidence: float, threshold: float) -> None:
    row = LABEL.encode(mask(np.zeros((1, 1), np.int64), confidence))
    kept = LABEL.decode(row, threshold)["classes"][0, 0] == 0
    if confidence >= threshold:
        assert kept
    elif confidence < threshold - 1 / 254:
        assert not kept


def test_decode_at_threshold_one_half_is_exact() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    row = LABEL.encode(mask(np.zeros((1, 3), np.int64), np.array([[0.499, below, 0.5]])))
    assert LABEL.decode(row, 0.5)["classes"].tolist() == [[IGNORE, IGNORE, 0]]


def test_encode_writes_areas_and_unknown_share() -> None:
    classes = np.array([[0, 0, 1, IGNORE], [0, 3, 1, IGNORE]])
    row = LABEL.encode(mask(classes, np.where(classes == IGNORE, 0.1, 0.75)))
    assert row["area"] == [3 / 8, 2 / 8, 0, 1 / 8]
    assert row["unknown"] == 0.25
    assert row["confidence"] == pytest.approx(0.75)
    held, kept = LABEL.count(row, 0.8)
    assert (held.tolist(), kept.tolist()) == ([3, 2, 0, 1], [0, 0, 0, 0])


def test_loss_is_cross_entropy_over_known_pixels() -> None:
    logits = torch.randn(2, 4, 9, 13, generator=torch.Generator().manual_seed(0))
    target = TASK.collate([random_mask(1), random_mask(2)])
    expected = F.cross_entropy(logits, target["classes"], ignore_index=IGNORE)
    torch.testing.assert_close(TASK.loss(logits, target), expected)


def reference_miou(pairs: list[tuple[Value, Value]]) -> tuple[float, float]:
    """Return mIoU and pixel accuracy of masks of one size, class by class in float64."""
    guess = np.concatenate([predicted["classes"].ravel() for predicted, _ in pairs]).astype(np.int64)
    truth = np.concatenate([true["classes"].ravel() for _, true in pairs]).astype(np.int64)
    guess, truth = guess[truth != IGNORE], truth[truth != IGNORE]
    scores = []
    for name in range(4):
        union = np.count_nonzero((guess == name) | (truth == name))
        if union:
            scores.append(np.count_nonzero((guess == name) & (truth == name)) / union)
    return float(np.mean(scores, dtype=np.float64)), float(np.mean(guess == truth, dtype=np.float64))


def test_intersection_over_union_agrees_with_numpy() -> None:
    pairs = [(random_mask(seed, unknown=0), random_mask(seed + 50)) for seed in range(4)]
    metric = TASK.metrics()
    for predicted, true in pairs:
        metric.update(predicted, true)
    miou, accuracy = reference_miou(pairs)
    assert metric.compute() == pytest.approx({"miou": miou, "pixel_accuracy": accuracy}, rel=1e-12)


def test_intersection_over_union_skips_absent_classes() -> None:
    pairs = [(mask(np.array([[0, 0, 1, 1]])), mask(np.array([[0, 1, 1, IGNORE]])))]
    metric = TASK.metrics()
    metric.update(*pairs[0])
    assert metric.compute()["miou"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert metric.compute()["miou"] == pytest.approx(reference_miou(pairs)[0])
    assert metric.compute_by_class() == {0: (1, {"miou": 0.5}), 1: (2, {"miou": 0.5})}


def test_intersection_over_union_resamples_prediction_to_truth() -> None:
    coarse = np.array([[0, 1], [2, 3]])
    metric = TASK.metrics()
    metric.update(mask(coarse), mask(coarse.repeat(5, 0).repeat(7, 1)))
    assert metric.compute() == {"miou": 1.0, "pixel_accuracy": 1.0}


def test_constant_label_is_most_frequent_class() -> None:
    guess = TASK.constant_label([mask(np.array([[0, 2], [2, IGNORE]])), mask(np.array([[2, 1]]))])
    assert guess["classes"].tolist() == [[2]]
    assert guess["confidence"][0, 0] == pytest.approx(3 / 5)


def test_predict_gives_most_probable_class_and_its_probability() -> None:
    logits = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    found = TASK.predict(logits)
    value = TASK.value({name: array.numpy() for name, array in found.items()}, 0, Placement((20, 12), (20, 12)))
    share = np.exp(logits[0].numpy()) / np.exp(logits[0].numpy()).sum(axis=0)
    np.testing.assert_array_equal(value["classes"], share.argmax(axis=0))
    np.testing.assert_allclose(value["confidence"], share.max(axis=0), rtol=1e-5)
