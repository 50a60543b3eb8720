"""The choice of pictures: every set in turn, the same each time, with the label that the student learned from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import tasks
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import Album, label_index, learned, pool_spots, pool_strips
from ingest.dataset import IngestedSet
from ingest.rejections import REJECTED_LABELS, rejections_config
from pipeline.steps.artifact import Artifact, Inputs, Step
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace, Value
from pipeline.stores.naming import store_name
from pipeline.stores.rejections import read_rejects, reject

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture
def album(world: World, tmp_path: Path) -> Album:
    """The pictures of a run that ended with the labels."""
    return Album(RunRecord(StoragePath.of(str(tmp_path)), world.artifacts))


def with_labels(world: World, tmp_path: Path, labels: str, **settings: Any) -> Album:
    """The same with a student that learned from these `labels`."""
    config = {"student": {"labels": labels, **settings}}
    student = Artifact(world.runtime.root, "", {"config": config, "counts": {}, "files": {}})
    return Album(RunRecord(StoragePath.of(str(tmp_path)), {**world.artifacts, "student": student}))


def test_images_come_from_every_set_in_turn_and_by_their_hash(album: Album) -> None:
    spots = pool_spots(album, 4)
    assert [spot.dataset for spot in spots] == ["pool", "truth", "pool", "truth"]
    for name in ("pool", "truth"):
        keys = [spot.about.key for spot in spots if spot.dataset == name]
        everything = sorted(key for shard in album.sets[name].images("train").shards for key in shard.keys)
        assert keys == everything[:2]
    assert [(s.dataset, s.row) for s in pool_spots(album, 4)] == [(s.dataset, s.row) for s in spots]


def test_no_more_images_are_asked_for_than_there_are(album: Album) -> None:
    spots = pool_spots(album, 100)
    assert len(spots) == 16
    assert len({spot.about.key for spot in spots}) == 16


def test_a_true_label_wins_on_the_teachers_own_set_only(album: Album) -> None:
    index, head = label_index(album.run), album.heads["depth"]
    pool, truth = pool_spots(album, 2)
    value, origin = learned(album, head, truth, index)
    true = album.truth(head, truth)
    assert origin == "true label"
    assert value is not None
    assert true is not None
    assert np.array_equal(value["depth"], true["depth"])
    assert learned(album, head, pool, index)[1] == "pseudo label"
    assert learned(album, album.heads["gabor"], truth, index)[1] == "pseudo label"


def test_the_recipes_choice_of_labels_is_followed(world: World, tmp_path: Path) -> None:
    pseudo = with_labels(world, tmp_path, "pseudo_only")
    pool, truth = pool_spots(pseudo, 2)
    index = label_index(pseudo.run)
    assert learned(pseudo, pseudo.heads["depth"], truth, index)[1] == "pseudo label"
    true = with_labels(world, tmp_path, "true_only")
    assert learned(true, true.heads["depth"], truth, index)[1] == "true label"
    assert learned(true, true.heads["depth"], pool, index) == (None, "no label")


def test_a_true_label_is_found_in_the_set_that_the_recipe_names(world: World, tmp_path: Path) -> None:
    """Of an image that is in two sets."""
    album = with_labels(world, tmp_path, "true_first", truths={"depth": ["truth"]})
    (_, truth), head = pool_spots(album, 2), dataclasses.replace(album.heads["depth"], home=None)
    assert learned(album, head, truth, label_index(album.run))[1] == "true label in truth"
    elsewhere = dataclasses.replace(truth, dataset="pool")
    there = album.same(elsewhere, "truth")
    assert there is not None
    assert (there.dataset, there.about.key) == ("truth", truth.about.key)
    assert learned(album, head, elsewhere, label_index(album.run))[1] == "true label in truth"
    assert learned(album, album.heads["depth"], elsewhere, label_index(album.run))[1] == "true label"


def test_the_threshold_is_applied_and_named(album: Album) -> None:
    index, spot = label_index(album.run), pool_spots(album, 1)[0]
    strict = dataclasses.replace(album.heads["boxes"], threshold=1.1)
    value, origin = learned(album, strict, spot, index)
    assert origin == "pseudo label ≥ 1.1"
    assert value is not None
    assert len(value["boxes"]) == 0


def test_an_image_without_a_label_is_pale_and_says_so(album: Album) -> None:
    image = Image.new("RGB", (20, 10), (255, 0, 0))
    picture = album.picture(image, album.heads["depth"], None, ("depth", "pseudo label"))
    assert picture.note == "no label"
    assert np.asarray(picture.image)[0, 0, 0] < 200


def test_the_classes_that_were_drawn_are_remembered(album: Album) -> None:
    head = album.heads["masks"]
    value: Value = {"classes": np.array([[2, 65535]], np.uint16), "confidence": np.ones((1, 2), np.float32)}
    album.picture(Image.new("RGB", (20, 10)), head, value, ("masks", ""))
    assert album.seen == {"masks": (head.label.space, {2})}


def test_labels_of_another_meaning_are_no_truth(album: Album) -> None:
    other = dataclasses.replace(album.heads["kinds"], label=tasks.label(LabelSpace("classification", ("cat", "dog"))))
    assert album.has_truth(album.heads["kinds"], "truth")
    assert not album.has_truth(other, "truth")


def test_a_rejected_label_is_shown_as_none_and_a_true_one_stays(world: World, tmp_path: Path) -> None:
    runtime = dataclasses.replace(world.runtime, root=Root.of(tmp_path / "root"))
    shards = {name: IngestedSet(world.artifacts[f"data.{name}"]).images("train").shards for name in ("pool", "truth")}
    keys = [key for each in shards.values() for shard in each for key in shard.keys]
    reject(runtime.root, keys, store_name("depth", world.artifacts["teacher.depth"].digest), "wrong")
    config = {"rejected": rejections_config(read_rejects(runtime.root)), "teachers": ["depth"]}
    made = Workspace(runtime.root).make(
        Step(REJECTED_LABELS, "ingest.rejections:copy_labels", config), Inputs({}, runtime)
    )
    album = Album(RunRecord(StoragePath.of(str(tmp_path)), {**world.artifacts, REJECTED_LABELS: made}))
    index, (pool, truth) = label_index(album.run), pool_spots(album, 2)
    assert learned(album, album.heads["depth"], pool, index) == (None, "rejected by hand")
    assert learned(album, album.heads["depth"], truth, index)[1] == "true label"
    assert learned(album, album.heads["gabor"], pool, index)[1] == "pseudo label"
    notes = [picture.note for picture in next(pool_strips(album)) if picture.title == "depth"]
    assert notes == ["rejected by hand"]
