"""Sample pictures: from every set in turn, the same each time, with the label that the student learned from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import tasks
from evaluation.report.run_record import RunRecord
from evaluation.report.samples import RunSamples, learned_label, pool_images, pool_strips
from ingest.dataset import IngestedSet
from ingest.rejections import REJECTED_LABELS, rejections_config
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.workspace import Workspace
from pipeline.storage.path import StoragePath
from pipeline.storage.root import Root
from pipeline.stores.labels import LabelSpace, Value
from pipeline.stores.naming import store_name
from pipeline.stores.rejections import read_rejections, reject
from tests.steps import make_step

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture
def samples(world: World, tmp_path: Path) -> RunSamples:
    """Return the samples of a run that ended with the labels."""
    return RunSamples(RunRecord(StoragePath.of(str(tmp_path)), world.artifacts))


def with_labels(world: World, tmp_path: Path, labels: str, **settings: Any) -> RunSamples:
    """Return the samples of a run whose student learned from these `labels`."""
    config = {"student": {"labels": labels, **settings}}
    made = {"config": config, "inputs": {"pool": {}, "label": {}}, "counts": {}, "files": {}}
    manifest = {"kind": "student", "section": ["student"], **made}
    student = Artifact(world.runtime.root, "", manifest)
    return RunSamples(RunRecord(StoragePath.of(str(tmp_path)), {**world.artifacts, "student": student}))


def test_pool_images_come_from_every_set_in_turn_and_by_their_hash(samples: RunSamples) -> None:
    images = pool_images(samples, 4)
    assert [image.dataset for image in images] == ["pool", "truth", "pool", "truth"]
    for name in ("pool", "truth"):
        keys = [image.metadata.key for image in images if image.dataset == name]
        everything = sorted(key for shard in samples.sets[name].images("train").shards for key in shard.keys)
        assert keys == everything[:2]
    assert [(s.dataset, s.row) for s in pool_images(samples, 4)] == [(s.dataset, s.row) for s in images]


def test_pool_images_are_no_more_than_the_pool_has(samples: RunSamples) -> None:
    images = pool_images(samples, 100)
    assert len(images) == 16
    assert len({image.metadata.key for image in images}) == 16


def test_learned_label_is_the_true_one_on_the_teachers_own_set_only(samples: RunSamples) -> None:
    head = samples.heads["depth"]
    pool, truth = pool_images(samples, 2)
    value, origin, _ = learned_label(samples, head, truth)
    true = samples.true_label(head, truth)
    assert origin == "true label"
    assert value is not None
    assert true is not None
    assert np.array_equal(value["depth"], true["depth"])
    assert learned_label(samples, head, pool)[1] == "pseudo label"
    assert learned_label(samples, samples.heads["gabor"], truth)[1] == "pseudo label"


def test_learned_label_follows_the_recipes_choice_of_labels(world: World, tmp_path: Path) -> None:
    pseudo = with_labels(world, tmp_path, "pseudo_only")
    pool, truth = pool_images(pseudo, 2)
    assert learned_label(pseudo, pseudo.heads["depth"], truth)[1] == "pseudo label"
    true = with_labels(world, tmp_path, "true_only")
    assert learned_label(true, true.heads["depth"], truth)[1] == "true label"
    assert learned_label(true, true.heads["depth"], pool)[:2] == (None, "no label")


def test_learned_label_is_found_in_the_set_that_the_recipe_names(world: World, tmp_path: Path) -> None:
    """An image may be in two sets."""
    samples = with_labels(world, tmp_path, "true_first", truths={"depth": ["truth"]})
    (_, truth), head = pool_images(samples, 2), dataclasses.replace(samples.heads["depth"], data=None)
    assert learned_label(samples, head, truth)[1] == "true label in truth"
    elsewhere = dataclasses.replace(truth, dataset="pool")
    value, origin, _ = learned_label(samples, head, elsewhere)
    true = samples.true_label(head, truth)
    assert origin == "true label in truth"
    assert value is not None
    assert true is not None
    assert np.array_equal(value["depth"], true["depth"])
    assert learned_label(samples, samples.heads["depth"], elsewhere)[1] == "true label"


def test_learned_label_applies_and_names_the_threshold(samples: RunSamples) -> None:
    [image] = pool_images(samples, 1)
    strict = dataclasses.replace(samples.heads["boxes"], threshold=1.1)
    value, origin, _ = learned_label(samples, strict, image)
    assert origin == "pseudo label, score ≥ 1.1"
    assert value is not None
    assert len(value["boxes"]) == 0


def test_draw_makes_an_image_without_a_label_pale(samples: RunSamples) -> None:
    image = Image.new("RGB", (20, 10), (255, 0, 0))
    picture = samples.draw(image, samples.heads["depth"], None, "depth", "pseudo label")
    assert picture.note == "no label"
    assert np.asarray(picture.image)[0, 0, 0] < 200


def test_draw_remembers_the_classes(samples: RunSamples) -> None:
    head = samples.heads["masks"]
    value: Value = {"classes": np.array([[2, 65535]], np.uint16), "confidence": np.ones((1, 2), np.float32)}
    samples.draw(Image.new("RGB", (20, 10)), head, value, "masks")
    assert samples.drawn_classes == {"masks": (head.label.space, {2})}


def test_has_true_labels_compares_classes(samples: RunSamples) -> None:
    other = dataclasses.replace(samples.heads["kinds"], label=tasks.label(LabelSpace("classification", ("cat", "dog"))))
    assert samples.has_true_labels(samples.heads["kinds"], "truth")
    assert not samples.has_true_labels(other, "truth")


def test_learned_label_is_none_where_it_was_rejected_and_stays_if_it_is_true(world: World, tmp_path: Path) -> None:
    runtime = dataclasses.replace(world.runtime, root=Root.of(tmp_path / "root"))
    shards = {name: IngestedSet(world.artifacts[f"data.{name}"]).images("train").shards for name in ("pool", "truth")}
    keys = [key for each in shards.values() for shard in each for key in shard.keys]
    reject(runtime.root, keys, store_name("depth", world.artifacts["teacher.depth"].digest), "wrong")
    config = {"rejected": rejections_config(read_rejections(runtime.root)), "teachers": ["depth"]}
    made = Workspace(runtime.root).make(
        make_step(REJECTED_LABELS, "ingest.rejections:copy_labels", config), Inputs({}, runtime)
    )
    samples = RunSamples(RunRecord(StoragePath.of(str(tmp_path)), {**world.artifacts, REJECTED_LABELS: made}))
    pool, truth = pool_images(samples, 2)
    assert learned_label(samples, samples.heads["depth"], pool)[:2] == (None, "rejected by hand")
    assert learned_label(samples, samples.heads["depth"], truth)[1] == "true label"
    assert learned_label(samples, samples.heads["gabor"], pool)[1] == "pseudo label"
    notes = [picture.note for picture in next(pool_strips(samples)) if picture.title == "depth"]
    assert notes == ["rejected by hand"]
