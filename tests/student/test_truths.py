"""`student.truths`: exported, corrected and ingested labels are what the head learns, whatever set an image is from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.sources import coco, imagefolder, masks
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.steps.workspace import Workspace
from pipeline.storage.root import Root
from pipeline.stores.labels import Value
from student.dataset import heads_of, student_dataset
from tests.exports import CONFIG, export
from tests.steps import make_step

if TYPE_CHECKING:
    from tests.conftest import World

LOW: dict[str, Any] = {"thresholds": {"boxes": 0.02, "masks": 0.0}}


def ingested(world: World, root: Path, config: Any) -> Artifact:
    """Ingest a set called `fixed`."""
    about = {"name": "fixed", "source": config.model_dump(mode="json"), "shard_images": 5}
    return Workspace(Root.of(root)).make(
        make_step("data.fixed", "ingest.ingest:ingest", about), Inputs({}, world.runtime)
    )


def learned(world: World, fixed: Artifact | None, **student: Any) -> dict[str, Mapping[str, Value]]:
    """Return the labels by key that the student learns if the set `fixed` is among its inputs."""
    more = {"data.fixed": fixed} if fixed else {}
    inputs = Inputs({**world.inputs("student").artifacts, **more}, world.runtime)
    config = CONFIG.model_copy(update={**LOW, **student})
    dataset = student_dataset(config, heads_of(config, inputs), inputs)
    return {dataset.read(index)[0]: dataset.values(index) for index in range(len(dataset))}


def correct(file: Path) -> dict[str, list[float]]:
    """Replace each image's boxes by one box, drop every third image, and return the boxes by key."""
    content = json.loads(file.read_text("utf-8"))
    content["images"] = [image for number, image in enumerate(content["images"]) if number % 3]
    content["annotations"] = [
        {"id": image["id"], "image_id": image["id"], "category_id": 2, "bbox": [1, 2, 3 + number, 4], "iscrowd": 0}
        for number, image in enumerate(content["images"])
    ]
    file.write_text(json.dumps(content), "utf-8")
    pairs = zip(content["images"], content["annotations"], strict=True)
    return {image["file_name"][:16]: annotation["bbox"] for image, annotation in pairs}


def same(one: Value, other: Value) -> None:
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_student_truths_boxes_win_over_true_and_pseudo_labels(world: World, tmp_path: Path) -> None:
    export(world, "coco", tmp_path / "out", ["boxes"], **LOW)
    corrected = correct(tmp_path / "out" / "instances_train.json")
    fixed = ingested(world, tmp_path / "root", coco.Config(path=str(tmp_path / "out")))
    assert fixed.counts["images"] == len(corrected)
    before, after = learned(world, None), learned(world, fixed, truths={"boxes": ["fixed"]})
    assert after.keys() == before.keys() > corrected.keys(), "only the pool decides which images there are"
    for key, values in after.items():
        for head in values.keys() - {"boxes"}:
            same(values[head], before[key][head])
        if key not in corrected:
            same(values["boxes"], before[key]["boxes"])
            continue
        x, y, width, height = corrected[key]
        assert values["boxes"]["boxes"].tolist() == [[x, y, x + width, y + height]]
        assert (values["boxes"]["classes"].tolist(), values["boxes"]["scores"].tolist()) == ([1], [1.0])
    true = learned(world, None, labels="true_only")
    assert 0 < len(corrected.keys() & true.keys()) < len(corrected), "some have a true label, some do not"


def test_student_truths_masks_win_with_corrected_pixels(world: World, tmp_path: Path) -> None:
    export(world, "masks", tmp_path / "out", ["masks"], **LOW)
    files = sorted((tmp_path / "out" / "masks" / "train").iterdir())
    for file in files:
        Image.fromarray(np.full((48, 48), int(file.stem, 16) % 7, np.uint8)).save(file)
    fixed = ingested(world, tmp_path / "root", masks.Config(path=str(tmp_path / "out")))
    after = learned(world, fixed, truths={"masks": ["fixed"]})
    assert len(files) == len(after)
    for key, values in after.items():
        assert set(np.unique(values["masks"]["classes"])) == {int(key, 16) % 7}


def test_student_truths_first_set_with_a_label_wins(world: World, tmp_path: Path) -> None:
    """After the teacher's own set, a correction changes nothing that this set has a label for."""
    export(world, "coco", tmp_path / "out", ["boxes"], **LOW)
    corrected = correct(tmp_path / "out" / "instances_train.json")
    fixed = ingested(world, tmp_path / "root", coco.Config(path=str(tmp_path / "out")))
    before, after = learned(world, None), learned(world, fixed, truths={"boxes": ["truth", "fixed"]})
    true = learned(world, None, labels="true_only")
    won = 0
    for key in corrected:
        own = "boxes" in true.get(key, {})
        assert np.array_equal(after[key]["boxes"]["boxes"], before[key]["boxes"]["boxes"]) == own
        won += not own
    assert 0 < won < len(corrected)


def test_student_truths_do_not_change_pseudo_only(world: World, tmp_path: Path) -> None:
    export(world, "coco", tmp_path / "out", ["boxes"], **LOW)
    correct(tmp_path / "out" / "instances_train.json")
    fixed = ingested(world, tmp_path / "root", coco.Config(path=str(tmp_path / "out")))
    before = learned(world, None, labels="pseudo_only")
    after = learned(world, fixed, labels="pseudo_only", truths={"boxes": ["fixed"]})
    for key, values in after.items():
        same(values["boxes"], before[key]["boxes"])


def test_student_truths_refuse_other_classes(world: World, tmp_path: Path) -> None:
    export(world, "coco", tmp_path / "out", ["boxes"], **LOW)
    file = tmp_path / "out" / "instances_train.json"
    content = json.loads(file.read_text("utf-8"))
    content["categories"][0]["name"] = "crate"
    file.write_text(json.dumps(content), "utf-8")
    fixed = ingested(world, tmp_path / "root", coco.Config(path=str(tmp_path / "out")))
    with pytest.raises(
        ConfigError,
        match=r"boxes: labels of set 'fixed' do not fit teacher 'boxes': classes differ: .*\(box, cone, .*\(crate, ",
    ):
        learned(world, fixed, truths={"boxes": ["fixed"]})


def test_student_truths_refuse_a_set_without_the_task(world: World, tmp_path: Path) -> None:
    for name in ("box", "cone"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for shade in range(9):
            Image.new("RGB", (8, 8), (shade, 0, len(name))).save(tmp_path / "set" / name / f"{shade}.png")
    fixed = ingested(world, tmp_path / "root", imagefolder.Config(path=str(tmp_path / "set")))
    with pytest.raises(ConfigError, match=r"the set has no labels for 'detection'; it has labels for classification"):
        learned(world, fixed, truths={"boxes": ["fixed"]})
