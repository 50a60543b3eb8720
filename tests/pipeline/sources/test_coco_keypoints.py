"""The coco source's keypoints: names, skeleton and points as the files state them; and what is damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.init import detect_source
from pipeline.errors import ConfigError, DataError, MustError
from pipeline.stores.skeleton import Skeleton
from tests.pipeline.sources.test_coco import SIZE, box, open_source, single_record, write

POSED: dict[str, Any] = {"keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}
POINTS = [20, 10, 2, 25, 8, 1, 0, 0, 0]
WIDE = [10, 5, 30, 20.5]


def write_posed(root: Path, boxes: list[dict[str, Any]], posed: dict[int, dict[str, Any]] | None = None) -> None:
    """Write a set whose categories with these ids have keypoints: by default person, 1, alone."""
    write(root, boxes)
    file = root / "instances_train.json"
    content = json.loads(file.read_text())
    for category in content["categories"]:
        category.update(({1: POSED} if posed is None else posed).get(category["id"], {}))
    file.write_text(json.dumps(content))


def test_coco_source_reads_keypoints_of_the_categories_that_have_them(tmp_path: Path) -> None:
    boxes = [box(WIDE, 3), box(WIDE, 1, keypoints=POINTS, area=123.5), box(WIDE, 1), box(WIDE, 1, keypoints=[])]
    write_posed(tmp_path, boxes)
    source = open_source(tmp_path, keypoints=True)
    space = source.spaces()["keypoints"]
    assert (space.classes, space.skeleton) == (("person",), Skeleton(tuple(POSED["keypoints"]), (), ((1, 2),)))
    assert space.skeleton.edges == ((0, 1), (0, 2))
    truth = single_record(source).truth(SIZE)
    value = truth.values["keypoints"]
    assert (truth.notes, truth.dropped) == ([], 0)
    assert len(truth.values["detection"]["boxes"]) == 4
    assert value["classes"].tolist() == [0, 0, 0]
    assert value["keypoints"][0].tolist() == [[20, 10], [25, 8], [0, 0]]
    assert value["visibility"].tolist() == [[2, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert value["keypoint_scores"][0].tolist() == [1, 1, 0]
    np.testing.assert_allclose(value["areas"], [123.5, *[0.53 * 30 * 20.5] * 2])
    assert {name: array.dtype for name, array in value.items()}["visibility"] == np.uint8


def test_coco_source_gives_keypoints_only_if_asked_for(tmp_path: Path) -> None:
    write_posed(tmp_path, [box(WIDE, 1, keypoints=POINTS)])
    assert set(single_record(open_source(tmp_path)).truth(SIZE).values) == {"detection"}
    both = single_record(open_source(tmp_path, keypoints=True, masks=True)).truth(SIZE)
    assert set(both.values) == {"detection", "masks", "keypoints"}


def test_coco_source_joins_categories_of_the_same_keypoints(tmp_path: Path) -> None:
    write_posed(
        tmp_path, [box(WIDE, 8, keypoints=POINTS), box(WIDE, 1)], {1: POSED, 8: {**POSED, "skeleton": [[2, 3]]}}
    )
    source = open_source(tmp_path, keypoints=True)
    assert source.spaces()["keypoints"].classes == ("person", "truck")
    assert source.spaces()["keypoints"].skeleton.edges == ((0, 1), (0, 2), (1, 2))
    assert single_record(source).truth(SIZE).values["keypoints"]["classes"].tolist() == [1, 0]


def test_coco_config_flip_pairs_are_names_of_points(tmp_path: Path) -> None:
    write_posed(tmp_path, [], {1: {"keypoints": ["nose", "west", "east"]}})
    assert open_source(tmp_path, keypoints=True).spaces()["keypoints"].skeleton.flip_pairs == ()
    stated = open_source(tmp_path, keypoints=True, flip_pairs=[["east", "west"]])
    assert stated.spaces()["keypoints"].skeleton.flip_pairs == ((2, 1),)
    with pytest.raises(ConfigError, match=r"flip_pairs: keypoint 'wets' is unknown. Did you mean 'west'"):
        open_source(tmp_path, keypoints=True, flip_pairs=[["east", "wets"]]).spaces()
    with pytest.raises(DataError, match="has two mirror images"):
        open_source(tmp_path, keypoints=True, flip_pairs=[["east", "west"], ["east", "nose"]]).spaces()


@pytest.mark.parametrize(
    ("posed", "message"),
    [
        ({}, "no category has `keypoints`"),
        ({1: {"keypoints": []}}, "no category has `keypoints`"),
        ({1: POSED, 8: {"keypoints": ["nose", "tail"]}}, "'person' and 'truck' have different keypoints.*nose, tail"),
        ({1: {"keypoints": "nose"}}, "the keypoints of category 'person' are no list of names"),
        ({1: {"keypoints": [1, 2]}}, "the keypoints of category 'person' are no list of names"),
        ({1: {"keypoints": ["nose", "nose"]}}, "the keypoint 'nose' is named twice"),
        ({1: {**POSED, "skeleton": [[0, 1]]}}, "skeleton of category 'person' .* numbered from 1 to 3: .*0, 1"),
        ({1: {**POSED, "skeleton": [[1, 4]]}}, "numbered from 1 to 3"),
        ({1: {**POSED, "skeleton": [1, 2]}}, "is no list of pairs of its points"),
        ({1: {**POSED, "skeleton": [[1.5, 2]]}}, "is no list of pairs of its points"),
        ({1: {**POSED, "skeleton": 7}}, "is no list of pairs of its points"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_coco_source_refuses_categories_with_damaged_keypoints(
    posed: dict[int, dict[str, Any]], message: str, tmp_path: Path
) -> None:
    write_posed(tmp_path, [], posed)
    with pytest.raises(MustError, match=f"{re.escape(str(tmp_path))}: .*{message}"):
        open_source(tmp_path, keypoints=True).spaces()


@pytest.mark.parametrize(
    ("keypoints", "note"),
    [
        (POINTS[:6], "keypoints that are not three numbers for each of 3 points dropped: annotation 9, 6 numbers"),
        ([*POINTS, 1], "keypoints that are not three numbers for each of 3 points dropped: annotation 9, 10 numbers"),
        (7, "keypoints that are not three numbers for each of 3 points dropped: annotation 9, 7"),
        ([1, 1, 3, *POINTS[3:]], "keypoints with a visibility other than 0, 1 and 2 dropped: annotation 9, 3"),
        ([1, 1, 0.5, *POINTS[3:]], "keypoints with a visibility other than 0, 1 and 2 dropped: annotation 9, 0.5"),
        ([float("nan"), *POINTS[1:]], "keypoints that are not all finite numbers dropped: annotation 9, "),
        ([1e400, *POINTS[1:]], "keypoints that are not all finite numbers dropped: annotation 9, "),
        (["x", *POINTS[1:]], "keypoints that are not all finite numbers dropped: annotation 9, "),
        ([[20, 10, 2], [25, 8, 1], [0, 0, 0]], "keypoints that are not three numbers for each of 3 points dropped"),
    ],
    ids=str,
)
def test_coco_source_counts_objects_with_damaged_keypoints(keypoints: Any, note: str, tmp_path: Path) -> None:
    write_posed(tmp_path, [box(WIDE, 1, id=9, keypoints=keypoints), box(WIDE, 1, keypoints=POINTS)])
    truth = single_record(open_source(tmp_path, keypoints=True)).truth(SIZE)
    [told] = truth.notes
    assert told.startswith(note)
    assert (truth.annotations, truth.dropped) == (2, 1)
    assert len(truth.values["detection"]["boxes"]) == 2, "its box is one all the same"
    assert truth.values["keypoints"]["visibility"].tolist() == [[2, 1, 0]]


def test_coco_source_notes_points_outside_the_image(tmp_path: Path) -> None:
    write_posed(tmp_path, [box(WIDE, 1, id=9, keypoints=[100, 50, 2, 25, -1, 1, 500, 500, 0])])
    truth = single_record(open_source(tmp_path, keypoints=True)).truth(SIZE)
    assert truth.notes == ["keypoint outside the image left out: annotation 9"]
    assert truth.dropped == 0
    assert truth.values["keypoints"]["visibility"].tolist() == [[2, 0, 0]], "a point on the edge is inside"
    assert truth.values["keypoints"]["keypoints"][0].tolist() == [[100, 50], [0, 0], [0, 0]]


@pytest.mark.parametrize("area", [None, 0, -3, "x", float("nan"), 1e300, [1]])
def test_coco_source_takes_a_share_of_the_box_for_an_area_that_is_none(area: Any, tmp_path: Path) -> None:
    write_posed(tmp_path, [box(WIDE, 1, keypoints=POINTS, area=area)])
    value = single_record(open_source(tmp_path, keypoints=True)).truth(SIZE).values["keypoints"]
    np.testing.assert_allclose(value["areas"], [0.53 * 30 * 20.5])


def test_coco_source_of_an_image_without_annotations_has_an_empty_label_of_keypoints(tmp_path: Path) -> None:
    write_posed(tmp_path, [])
    value = single_record(open_source(tmp_path, keypoints=True)).truth(SIZE).values["keypoints"]
    assert {name: array.shape for name, array in value.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "classes": (0,),
        "size": (2,),
        "keypoints": (0, 3, 2),
        "visibility": (0, 3),
        "keypoint_scores": (0, 3),
        "areas": (0,),
    }


def test_coco_source_prefers_the_annotations_of_keypoints_and_detects_them(tmp_path: Path) -> None:
    write_posed(tmp_path, [box(WIDE, 1, keypoints=POINTS)])
    posed = tmp_path / "person_keypoints_train.json"
    posed.write_bytes((tmp_path / "instances_train.json").read_bytes())
    write(tmp_path, [])
    assert open_source(tmp_path).files[0].path.endswith("/instances_train.json")
    assert open_source(tmp_path, keypoints=True).files[0].path.endswith("/person_keypoints_train.json")
    (tmp_path / "instances_train.json").unlink()
    found = detect_source(tmp_path)
    assert found.entry == {"kind": "coco", "path": str(tmp_path), "keypoints": True, "hold_out": 0.2}
    assert found.tasks == ("detection", "keypoints")
