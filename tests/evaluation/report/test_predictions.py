"""Predictions in the report: on which images, with which threshold, and each image once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from evaluation.metric_table import EvaluationTarget
from evaluation.report.predictions import CachedPredictor, apply_threshold, held_out_images, teacher_predictor
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import RunSamples
from pipeline.storage import path
from pipeline.stores.labels import Value

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.task import Prediction
    from tests.conftest import World

TARGET = EvaluationTarget("depth", "depth", "truth", "val", 3, 0, "whole")


@pytest.fixture
def samples(world: World, tmp_path: Path) -> RunSamples:
    """Return the samples of a run that ended with the labels."""
    return RunSamples(RunRecord(path.StoragePath.of(str(tmp_path)), world.artifacts))


def test_apply_threshold_leaves_out_boxes_and_names_the_best(samples: RunSamples) -> None:
    head = dataclasses.replace(samples.heads["boxes"], threshold=0.5)
    boxes: Value = {
        "boxes": np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32),
        "scores": np.array([0.25, 0.75], np.float32),
        "classes": np.zeros(2, np.int32),
        "size": np.array([20, 10], np.int32),
    }
    kept, note = apply_threshold(head, boxes)
    assert kept["scores"].tolist() == [0.75]
    assert note == "score ≥ 0.5"
    kept, note = apply_threshold(dataclasses.replace(head, threshold=0.9), boxes)
    assert len(kept["boxes"]) == 0
    assert note == "score ≥ 0.9, best 0.75"


def test_apply_threshold_leaves_masks_whole(samples: RunSamples) -> None:
    mask: Value = {"classes": np.zeros((2, 2), np.uint16), "confidence": np.zeros((2, 2), np.float32)}
    assert apply_threshold(dataclasses.replace(samples.heads["masks"], threshold=0.9), mask) == (mask, "")


def test_held_out_images_have_a_true_label_if_the_set_has_any(samples: RunSamples) -> None:
    images = held_out_images(samples, samples.heads["depth"], TARGET, 10)
    assert {image.split for image in images} == {"val"}
    assert len(images) == 3
    assert not samples.has_true_labels(samples.heads["gabor"], "truth")
    assert len(held_out_images(samples, samples.heads["gabor"], TARGET, 2)) == 2, "its teacher is compared with instead"


def test_cached_predictor_predicts_each_image_once(samples: RunSamples, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = teacher_predictor(samples.run, "depth")
    first, second, third = held_out_images(samples, samples.heads["depth"], TARGET, 3)
    batches: list[int] = []
    predict = predictor.predictor.predict

    def counted(images: Tensor, sizes: Sequence[tuple[int, int]]) -> dict[str, Prediction]:
        batches.append(len(images))
        return predict(images, sizes)

    monkeypatch.setattr(predictor.predictor, "predict", counted)
    alone = predictor.predict([second])[0]["depth"]
    together = [prediction["depth"] for prediction in predictor.predict([first, second, third])]
    assert batches == [1, 2]
    assert together[1] is alone
    again = CachedPredictor(predictor.predictor).predict([first, second, third])
    assert [prediction["depth"]["depth"] for prediction in again] == [
        pytest.approx(value["depth"]) for value in together
    ]
