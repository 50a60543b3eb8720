"""Threshold report: labels kept by class, and a warning where a threshold skews the classes or keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import tasks
from pipeline.recipe.student import StudentConfig
from pipeline.steps.artifact import read_json
from pipeline.stores.calibration import Calibration, Isotonic
from pipeline.stores.labels import Label, LabelShard
from student.dataset import heads_of
from student.threshold_report import count_kept, skew_warning

if TYPE_CHECKING:
    from tests.conftest import World

CLASSES = ["car", "bus", "tram"]


def warning(held: list[int], kept: list[int]) -> str | None:
    return skew_warning(CLASSES, np.array(held), np.array(kept))


@pytest.mark.parametrize(
    ("held", "kept"),
    [
        ([100, 100, 100], [100, 100, 100]),  # all of it
        ([100, 100, 100], [60, 50, 40]),  # less of each, but alike
        ([100_000, 100_000, 100], [50_000, 50_000, 0]),  # too rare to tell
        ([100, 0, 0], [10, 0, 0]),  # one class: nothing to skew
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_skew_warning_is_none_if_classes_are_kept_alike(held: list[int], kept: list[int]) -> None:
    assert warning(held, kept) is None


def test_skew_warning_names_best_and_worst_class() -> None:
    text = warning([100, 200, 50], [90, 40, 25])
    assert text is not None
    assert "keeps 90% of 'car' but 20% of 'bus'" in text


def test_skew_warning_names_a_class_without_labels_left() -> None:
    assert "keeps 50% of 'bus' but 0% of 'car'" in str(warning([100, 100, 100], [0, 50, 40]))


def test_skew_warning_says_that_nothing_is_kept() -> None:
    assert "keeps nothing" in str(warning([100, 100, 0], [0, 0, 0]))


def test_skew_warning_says_that_only_a_rare_class_is_kept() -> None:
    text = warning([100_000, 100_000, 100], [0, 0, 50])
    assert text is not None
    assert "keeps nothing of the common classes" in text


def test_count_kept_says_that_calibrated_scores_do_not_reach_the_threshold(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = Calibration(Isotonic((0.0, 1.0), (0.0, 0.42)))
    monkeypatch.setattr(Label, "calibrated_as", lambda label, _: type(label)(label.space, weak))
    inputs = world.inputs("student")
    heads = heads_of(StudentConfig(thresholds={"masks": 0.5}), inputs)
    share = count_kept({"masks": heads["masks"]}, inputs)["masks"]
    assert (share["calibrated"], sum(share["kept"])) == (True, 0)
    assert share["warning"] == (
        "the threshold keeps nothing: the student learns none of the classes from this teacher. Its scores are "
        "calibrated: the highest are right in 42% of the cases, and the threshold is 50%. Lower "
        "student.thresholds.masks, or set "
        "teachers.masks.calibrate to null, and the threshold is compared with the scores themselves"
    )


def box_scores(world: World) -> list[float]:
    """Return the scores of all boxes of the teacher `boxes` in the pool."""
    label = tasks.label(heads_of(StudentConfig(), world.inputs("student"))["boxes"].space)
    made = world.artifacts["label"]
    files = [
        made.external_file(each["path"]) for each in made.load("labels.json", read_json) if each["teacher"] == "boxes"
    ]
    return [score for file in files for row in LabelShard(file, label).rows() for score in row["scores"]]


def test_count_kept_counts_labels_on_disk(world: World) -> None:
    scores = box_scores(world)
    threshold = float(np.median(scores))
    config = StudentConfig(thresholds={"masks": 0.3, "boxes": threshold})
    inputs = world.inputs("student")
    shares = count_kept(heads_of(config, inputs), inputs)
    thresholds = {"kinds": 0.0, "masks": 0.3, "boxes": threshold, "depth": 0.0, "gabor": 0.0}
    assert {name: share["threshold"] for name, share in shares.items()} == thresholds
    assert all(share["images"] == 16 for share in shares.values())
    assert sum(shares["kinds"]["held"]) == sum(shares["kinds"]["kept"]) == 16
    assert shares["depth"]["classes"] == ["depth"]
    assert sum(shares["boxes"]["held"]) == pytest.approx(sum(scores))  # objects: a box counts by its score
    kept = sum(score for score in scores if score >= np.float32(threshold))
    assert sum(shares["boxes"]["kept"]) == pytest.approx(kept)
    assert 0 < kept < sum(scores)
    masks = shares["masks"]
    assert sum(masks["held"]) == 16 * 8 * 8
    assert sum(masks["kept"]) <= sum(masks["held"])
