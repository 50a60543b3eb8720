"""Fitting calibrations: known temperatures are found, curves are scikit-learn's, and no half measures itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.isotonic import IsotonicRegression

import tasks
from pipeline.stores.calibration import Calibration, Isotonic, Temperature
from pipeline.stores.codecs import share_to_byte
from pipeline.stores.labels import IGNORE, LabelSpace, Value
from tasks import calibration
from tasks.calibration import Calibrator, ClassifiedExamples, Examples, ScoredExamples, thin
from tasks.task import Task

RNG = np.random.default_rng(0)
CLASSES = ("cup", "spoon")


def scored(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> ScoredExamples:
    return ScoredExamples(scores.astype(np.float32), right.astype(np.float64), np.ones(len(scores)))


def over_confident(count: int, seed: int = 0) -> ScoredExamples:
    """Return scores s that are right with probability s squared."""
    rng = np.random.default_rng(seed)
    scores = rng.random(count)
    return scored(scores, rng.random(count) < scores**2)


def calibrator_of(images: list[Examples]) -> Calibrator:
    found = Calibrator(lambda predicted, _: images[int(predicted["number"])])
    for number in range(len(images)):
        found.update({"number": np.array(number)}, {})
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_classified_examples_fit_finds_the_temperature(temperature: float) -> None:
    logits = RNG.normal(size=(4000, 8)) * 2
    classes = (logits + RNG.gumbel(size=logits.shape)).argmax(axis=1)  # drawn from softmax(logits)
    probs = softmax(logits * temperature, axis=1).astype(np.float32)
    assert ClassifiedExamples(probs, classes).fit().temperature == pytest.approx(temperature, rel=0.07)


def test_classified_examples_fit_survives_probabilities_of_0() -> None:
    probs = np.tile(np.eye(3, dtype=np.float32)[0], (200, 1))
    assert np.isfinite(ClassifiedExamples(probs, np.arange(200) % 3).fit().temperature)


def test_scored_examples_fit_is_isotonic_regression_before_it_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_KNOTS", 10**6)
    monkeypatch.setattr(calibration, "KNOT_ERROR", 0.0)
    examples, grid = over_confident(3000), np.linspace(0, 1, 501)
    model = IsotonicRegression(out_of_bounds="clip").fit(examples.scores.astype(np.float64), examples.right)
    np.testing.assert_allclose(examples.fit()(grid), model.predict(grid), atol=1e-9)


def test_scored_examples_fit_is_small_monotone_and_close() -> None:
    examples, grid = over_confident(20_000), np.linspace(0, 1, 501)
    curve = examples.fit()
    assert len(curve.scores) <= 50
    assert (curve.scores[0], curve.scores[-1]) == (0, 1)
    assert (np.diff(curve.scores) > 0).all()
    assert (np.diff(curve.probabilities) >= 0).all()
    assert np.abs(curve(grid) - grid**2).max() < 0.1
    whole = IsotonicRegression(out_of_bounds="clip").fit(examples.scores.astype(np.float64), examples.right)
    assert np.abs(curve(grid) - whole.predict(grid)).max() < 0.02, "thinning"


def test_thin_keeps_ends_and_bounds_the_number() -> None:
    x = np.linspace(0, 1, 1000)
    assert thin(x, x) == [0, 999]
    assert len(thin(x, np.sort(RNG.random(1000)))) <= calibration.MAX_KNOTS
    assert thin(np.array([0.0, 1.0]), np.array([0.3, 0.3])) == [0, 1]


def test_scored_examples_merge_counts_equal_scores_once() -> None:
    one, other = scored(np.array([0.5, 0.25]), np.array([True, False])), scored(np.array([0.5]), np.array([False]))
    both = one.merge([other])
    assert (both.scores.tolist(), both.right.tolist(), both.weights.tolist()) == ([0.25, 0.5], [0, 0.5], [1, 2])


def test_calibrator_measures_each_half_by_the_other() -> None:
    """Pure noise that a curve can learn by heart: by its own fit it would be perfectly reliable."""
    halves = [scored(np.full(20, 0.2), np.arange(20) < 16), scored(np.full(20, 0.2), np.arange(20) < 4)]
    found = calibrator_of([halves[number % 2] for number in range(20)]).fit("things", "val")
    assert found.reliability is not None
    assert found.reliability.calibrated.ece == pytest.approx(0.6), "80 % are right where 20 % are said, and back"
    assert found.reliability.raw.ece == pytest.approx(0.3)
    assert (found.reliability.images, found.reliability.examples) == (20, 400)
    np.testing.assert_allclose(found(np.array([0.2])), 0.5), "all images together"


def test_calibrator_brings_scores_to_probabilities() -> None:
    found = calibrator_of([over_confident(50, seed) for seed in range(100)]).fit("things", "test")
    assert found.reliability is not None
    assert found.reliability.calibrated.ece < 0.03
    assert found.reliability.raw.ece > 0.12
    assert found(np.array([0.5]))[0] == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([], "there are 0 scores to compare with true labels, on 0 held-out images; it takes 100, on 10 images"),
        ([over_confident(9)] * 11, "there are 99 scores .* on 11 held-out images"),
        ([over_confident(900)] * 9, "on 9 held-out images"),
        ([scored(RNG.random(20), np.ones(20, bool))] * 10, "all 200 predictions on held-out images are right"),
        ([scored(RNG.random(20), np.zeros(20, bool))] * 10, "all 200 predictions on held-out images are wrong"),
    ],
)
def test_calibrator_shortage_says_why(images: list[Examples], reason: str) -> None:
    assert re.search(reason, calibrator_of(images).shortage() or "")


def test_calibrator_shortage_is_none_where_it_can_fit() -> None:
    assert calibrator_of([over_confident(10, seed) for seed in range(10)]).shortage() is None


def test_calibrator_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MERGE_FROM", 500)
    levels = scored(np.arange(256) / 255, np.arange(256) > 100)
    found = calibrator_of([levels] * 200)
    assert all(half._size <= 1100 for half in found._halves), "levels are counted, not kept"
    monkeypatch.setattr(calibration, "MAX_SIZE", 1000)
    full = calibrator_of([over_confident(100, seed) for seed in range(40)])
    assert full.images < 30


def test_detection_examples_match_each_true_box_once() -> None:
    box, size = [0.0, 0.0, 10.0, 10.0], np.array([20, 20], np.int32)

    def boxes(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Value:
        arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int32)
        return {"boxes": arrays[0], "scores": arrays[1], "classes": arrays[2], "size": size}

    task = tasks.model(LabelSpace("detection", CLASSES))
    predicted = boxes([box, box, box, [0, 0, 10, 4]], [0.5, 0.9, 0.8, 0.7], [0, 0, 1, 0])
    found = task.scored_examples(predicted, boxes([box], [1.0], [0]))
    assert isinstance(found, ScoredExamples)
    assert found.right.tolist() == [0, 1, 0, 0], "the best of its class alone; the last one's IoU is 0.4"
    assert task.scored_examples(boxes([], [], []), boxes([box], [1.0], [0])) is None


def test_segmentation_examples_count_levels_of_known_pixels() -> None:
    task = tasks.model(LabelSpace("segmentation", CLASSES))
    confidence = np.array([[0.5, 0.5], [0.9, 0.501]], np.float32)
    predicted: Value = {"classes": np.array([[0, 1], [1, 0]], np.uint16), "confidence": confidence}
    found = task.scored_examples(predicted, {"classes": np.array([[0, 0], [IGNORE, 0]], np.uint16)})
    assert isinstance(found, ScoredExamples)
    assert share_to_byte(found.scores).tolist() == [128]
    assert (found.right.tolist(), found.weights.tolist()) == ([2 / 3], [3])


@pytest.mark.parametrize("task", tasks.names())
def test_label_can_be_calibrated_where_the_task_has_examples(task: str) -> None:
    space = LabelSpace(task, ("1@45", "1@135"))
    overrides = type(tasks.model(space)).scored_examples is not Task.scored_examples
    assert tasks.label(space).can_be_calibrated == overrides


LABELS: dict[str, Value] = {
    "classification": {"probs": np.array([0.7, 0.3], np.float32)},
    "detection": {
        "boxes": np.array([[0, 0, 4, 4], [0, 0, 8, 8]], np.float32),
        "scores": np.array([0.9, 0.4], np.float32),
        "classes": np.array([0, 1], np.int32),
        "size": np.array([8, 8], np.int32),
    },
    "segmentation": {
        "classes": np.array([[0, 1]], np.uint16),
        "confidence": np.array([[0.8, 0.4]], np.float32),
    },
}


def amount(task: str, value: Value) -> int:
    """Return how many classes, boxes or pixels a label has."""
    known = {"classification": "probs", "detection": "scores"}.get(task)
    return int((value["classes"] != IGNORE).sum() if known is None else np.count_nonzero(value[known] > 0.35))


@pytest.mark.parametrize("task", LABELS)
def test_threshold_is_compared_with_probabilities(task: str) -> None:
    halved = Calibration(Temperature(1.7) if task == "classification" else Isotonic((0.0, 1.0), (0.0, 0.5)))
    label, raw = tasks.label(LabelSpace(task, CLASSES), halved), tasks.label(LabelSpace(task, CLASSES))
    row, raw_row = label.encode(LABELS[task]), raw.encode(LABELS[task])
    best = {"classification": 0.622, "detection": 0.45, "segmentation": 0.4}[task]
    assert amount(task, label.decode(row, best - 0.01)) >= 1
    assert amount(task, label.decode(row, best + 0.01)) == 0
    assert amount(task, raw.decode(raw_row, best + 0.01)) >= 1
    assert label.count(row, best - 0.01)[1].sum() > 0 == label.count(row, best + 0.01)[1].sum()
    for name, array in label.decode(row).items():
        np.testing.assert_array_equal(array, raw.decode(raw_row)[name], err_msg="values keep raw scores")
    same = {name for name in row if name not in ("probability", "probabilities", "count_50")}
    assert {name: row[name] for name in same} == {name: raw_row[name] for name in same}
    assert raw_row["probability"] == raw_row["confidence"]
    assert row["probability"] < row["confidence"]


def test_label_texts_tell_probabilities() -> None:
    halved = Calibration(Isotonic((0.0, 1.0), (0.0, 0.5)))
    boxes = tasks.label(LabelSpace("detection", CLASSES), halved)
    assert boxes.describe_at(LABELS["detection"], (0.1, 0.1)) == "cup 45%, spoon 20%"
    masks = tasks.label(LabelSpace("segmentation", CLASSES), halved)
    assert masks.describe_at(LABELS["segmentation"], (0.1, 0.5)) == "cup 40%"
    kinds = tasks.label(LabelSpace("classification", CLASSES), Calibration(Temperature(1.7)))
    assert kinds.describe(LABELS["classification"]) == "cup 62%"
