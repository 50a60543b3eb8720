"""A run on instance masks of the generated world: a teacher, its labels, a student, and what reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from browser.answers import Answers
from browser.filters import ImageSelection
from browser.loading import Loading
from browser.together import draw_together
from flows.plan.steps import build_steps
from ingest.dataset import IngestedSet
from pipeline.errors import ConfigError
from pipeline.recipe.reader import parse_recipe
from pipeline.storage.root import Root
from pipeline.stores.rle import decode_mask
from tests.flows.objects import check_measured, inputs_of, learned_dataset, objects_recipe, run_objects

RECIPE = objects_recipe("masks", "things")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_objects(RECIPE, tmp_path_factory.mktemp("objects"))


def test_run_measures_a_teacher_and_a_student_of_masks(outcome: Any) -> None:
    check_measured(outcome, "masks", "things")


def test_student_dataset_of_masks_has_true_ones_and_those_above_the_threshold(outcome: Any) -> None:
    dataset = learned_dataset(outcome, "masks")
    pool = set(IngestedSet(inputs_of(outcome)["data.pool"]).images("train").shards[0].keys)
    by_key = {key: dataset.values(index)["things"] for index, key in enumerate(dataset.keys())}
    assert len(by_key) == 14
    for key, value in by_key.items():
        assert value["size"].tolist() == [48, 48]
        assert all(decode_mask(mask, (48, 48)).any() for mask in value["masks"])
        assert key in pool or (value["scores"] == 1).all()
    assert any(len(by_key[key]["masks"]) for key in pool)
    assert all((by_key[key]["scores"] >= np.float32(0.02)).all() for key in pool)


def test_browser_filters_and_draws_masks(outcome: Any) -> None:
    loading = Loading(Root.of(str(outcome.folder.parent.parent)))
    loading.refresh()
    assert not loading.progress.damaged
    answers = Answers(loading)
    stores = [loading.newest_stores()["things"].name, "true-world-masks"]
    info = next(each for each in answers.about()["stores"] if each["name"] == stores[1])
    assert (info["scored"], info["holds"]) == (True, True)
    assert {"count", "count_50"} <= set(info["columns"])
    [each] = answers.images(ImageSelection([f"{stores[1]}.class=torus"]), 1, 0)["images"]
    image = answers.image(each["key"], {})
    assert any(label["says"].endswith(("mask", "masks")) for label in image["labels"])
    together = [(answers.store(store), 0.0) for store in stores]
    (drawn, whole), plain = (
        draw_together(answers.pictures, answers.image_id(each["key"]), some, 96) for some in (together, [])
    )
    assert whole
    assert (np.asarray(drawn) != np.asarray(plain[0])).any()


def test_plan_refuses_a_teacher_of_masks_on_boxes_and_names_what_there_is() -> None:
    boxes = "data.world={kind: scenes, count: 10, test: 3, seed: 1, size: 48, tasks: [detection]}"
    with pytest.raises(ConfigError, match="the set 'world' has no labels for 'masks'; it has labels for detection"):
        build_steps(parse_recipe(RECIPE, "r", [boxes]))
