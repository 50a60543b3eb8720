"""A run on keypoints of the generated world: a teacher, its labels, a student, and what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser.answers import Answers
from browser.filters import ImageSelection
from browser.loading import Loading
from browser.together import draw_together
from cli.main import main
from pipeline.sources import coco
from pipeline.storage.root import Root
from tests.flows.objects import check_measured, learned_dataset, objects_recipe, run_objects

RECIPE = objects_recipe("keypoints", "ends")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_objects(RECIPE, tmp_path_factory.mktemp("ends"))


def test_run_measures_a_teacher_and_a_student_of_keypoints(outcome: Any) -> None:
    check_measured(outcome, "keypoints", "ends")


def test_student_dataset_of_keypoints_has_true_ones_and_those_above_the_threshold(outcome: Any) -> None:
    dataset = learned_dataset(outcome, "keypoints")
    values = [dataset.values(index)["ends"] for index in range(len(dataset.keys()))]
    assert len(values) == 14
    for value in values:
        assert value["keypoints"].shape == (len(value["boxes"]), 4, 2)
        known = value["visibility"] > 0
        assert (value["keypoint_scores"][known] >= np.float32(0.02)).all()
        assert not value["keypoints"][~known].any()


def test_browser_filters_and_draws_keypoints(outcome: Any) -> None:
    loading = Loading(Root.of(str(outcome.folder.parent.parent)))
    loading.refresh()
    assert not loading.progress.damaged
    answers = Answers(loading)
    store = "true-world-keypoints"
    info = next(each for each in answers.about()["stores"] if each["name"] == store)
    assert (info["scored"], info["holds"]) == (True, True)
    assert {"count", "count_keypoints"} <= set(info["columns"])
    [each] = answers.images(ImageSelection([f"{store}.count_keypoints>=4"]), 1, 0)["images"]
    image = answers.image(each["key"], {})
    assert any("with keypoints" in label["says"] for label in image["labels"])
    (drawn, whole), plain = (
        draw_together(answers.pictures, answers.image_id(each["key"]), some, 96)
        for some in ([(answers.store(store), 0.0)], [])
    )
    assert whole
    assert (np.asarray(drawn) != np.asarray(plain[0])).any()


def test_predict_and_export_write_keypoints(outcome: Any, tmp_path: Path) -> None:
    root, recipe = outcome.folder.parent.parent, outcome.folder.parent.parent.parent / "objects.yaml"
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (48, 48), (90, 120, 40)).save(tmp_path / "photos" / "a.png")
    written = {form: tmp_path / form for form in ("json", "coco", "pictures", "labels")}
    for form in ("json", "coco", "pictures"):
        main_at(root, "predict", str(tmp_path / "photos"), str(written[form]), "--to", form, "--threshold", "0.01")
    main_at(root, "export", "labels", str(recipe), str(written["labels"]), "--to", "coco")
    [line] = (written["json"] / "predictions.jsonl").read_text("utf-8").splitlines()
    objects = json.loads(line)["labels"]["ends"]["objects"]
    predicted = json.loads((written["coco"] / "person_keypoints.json").read_text("utf-8"))
    assert len(objects) == len(predicted["annotations"]) > 0
    assert set(objects[0]["keypoints"]) <= {"top", "right", "bottom", "left"}
    assert predicted["categories"][0]["keypoints"] == ["top", "right", "bottom", "left"]
    source = coco.Source(coco.Config(path=str(written["labels"]), keypoints=True))
    truths = [record.truth((48, 48)).values["keypoints"] for record in source.records()]
    assert any((truth["visibility"] == 2).all(axis=1).any() for truth in truths)


def main_at(root: Any, *arguments: str) -> None:
    """Run a command on a root, which ends without an error."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--root", str(root)])
    assert not ended.value.code
