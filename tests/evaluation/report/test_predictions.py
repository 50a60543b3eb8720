"""What is shown of predictions: on which images, with which threshold, and how often a model is asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evaluation.metric_table import EvaluationTarget
from evaluation.report.predictions import CachedPredictor, held_out_spots, readable, teacher_of
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import Album
from pipeline.storage import path
from pipeline.stores.labels import Value

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.task import Prediction
    from tests.conftest import World

PLACE = EvaluationTarget("depth", "depth", "truth", "val", 3, 0, "whole")


@pytest.fixture
def album(world: World, tmp_path: Path) -> Album:
    """The pictures of a run that ended with the labels."""
    return Album(RunRecord(path.StoragePath.of(str(tmp_path)), world.artifacts))


def test_of_predicted_boxes_those_below_the_threshold_are_left_out_and_the_best_is_named(album: Album) -> None:
    head = dataclasses.replace(album.heads["boxes"], threshold=0.5)
    boxes: Value = {
        "boxes": np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32),
        "scores": np.array([0.25, 0.75], np.float32),
        "classes": np.zeros(2, np.int32),
        "size": np.array([20, 10], np.int32),
    }
    kept, note = readable(head, boxes)
    assert kept["scores"].tolist() == [0.75]
    assert note == "score ≥ 0.5"
    kept, note = readable(dataclasses.replace(head, threshold=0.9), boxes)
    assert len(kept["boxes"]) == 0
    assert note == "score ≥ 0.9, best 0.75"


def test_predicted_masks_are_shown_whole(album: Album) -> None:
    mask: Value = {"classes": np.zeros((2, 2), np.uint16), "confidence": np.zeros((2, 2), np.float32)}
    assert readable(dataclasses.replace(album.heads["masks"], threshold=0.9), mask) == (mask, "")


def test_held_out_images_are_those_with_a_true_label(album: Album) -> None:
    spots = held_out_spots(album, album.heads["depth"], PLACE, 10)
    assert {spot.split for spot in spots} == {"val"}
    assert len(spots) == 3
    assert not album.has_truth(album.heads["gabor"], "truth")
    assert len(held_out_spots(album, album.heads["gabor"], PLACE, 2)) == 2, "its teacher is asked instead"


def test_a_model_is_asked_once_about_each_image(album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
    witness = teacher_of(album.run, "depth")
    first, second, third = held_out_spots(album, album.heads["depth"], PLACE, 3)
    asked: list[int] = []
    predict = witness.predictor.predict

    def counted(images: Tensor) -> dict[str, Prediction]:
        asked.append(len(images))
        return predict(images)

    monkeypatch.setattr(witness.predictor, "predict", counted)
    alone = witness.predict([second])[0]["depth"]
    together = [said["depth"] for said in witness.predict([first, second, third])]
    assert asked == [1, 2]
    assert together[1] is alone
    again = CachedPredictor(witness.predictor).predict([first, second, third])
    assert [said["depth"]["depth"] for said in again] == [pytest.approx(value["depth"]) for value in together]
