"""Exports of keypoints: COCO's read back by pycocotools and our own source, and the other forms' points."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

import tasks
from pipeline.errors import ConfigError
from pipeline.export import ExportSample, write_export
from pipeline.predictions.json import to_json
from pipeline.sources import coco
from pipeline.stores.labels import LabelSpace, Value
from pipeline.stores.skeleton import Skeleton

SIZE = (48, 32)
SKELETON = Skeleton(("nose", "left_eye", "right_eye"), ((0, 1), (0, 2)), ((1, 2),))
LABEL = tasks.label(LabelSpace("keypoints", ("cat", "dog"), skeleton=SKELETON))


def value() -> Value:
    """Return two objects, the second without a known point."""
    return {
        "boxes": np.array([[4.5, 2.5, 30.5, 21], [19, 9.25, 41, 31]], np.float32),
        "scores": np.array([0.9, 0.25], np.float32),
        "classes": np.array([1, 0], np.int32),
        "size": np.array(SIZE, np.int32),
        "keypoints": np.array([[[10.5, 8], [14, 7.25], [0, 0]], np.zeros((3, 2))], np.float32),
        "visibility": np.array([[2, 1, 0], [0, 0, 0]], np.uint8),
        "keypoint_scores": np.array([[0.75, 0.5, 0], [0, 0, 0]], np.float32),
        "areas": np.array([200.5, 100], np.float32),
    }


def export(form: str, out: Path) -> dict[str, Any]:
    picture = out.parent / "a.png"
    Image.new("RGB", SIZE).save(picture)
    sample = ExportSample("0" * 16, picture.read_bytes(), "png", SIZE, "a.png", {"things": value()})
    return write_export(form, out, {"things": LABEL}, [sample], {})


def test_coco_writer_keypoints_are_read_by_pycocotools_and_by_coco_source(tmp_path: Path) -> None:
    summary = export("coco", tmp_path / "out")
    assert summary["heads"]["things"]["where"] == "person_keypoints_train.json"
    found = COCO(str(tmp_path / "out" / "person_keypoints_train.json"))
    assert [each["num_keypoints"] for each in found.anns.values()] == [2, 0]
    assert found.anns[1]["keypoints"] == [10.5, 8, 2, 14, 7.25, 1, 0, 0, 0]
    assert found.cats[1]["skeleton"] == [[1, 2], [1, 3]]
    source = coco.Source(coco.Config(path=str(tmp_path / "out"), keypoints=True))
    assert source.spaces()["keypoints"] == dataclasses.replace(LABEL.space)
    assert source.spaces()["keypoints"].skeleton.edges == SKELETON.edges
    [record] = source.records()
    truth = record.truth(SIZE)
    assert not truth.notes
    for name in ("boxes", "classes", "keypoints", "visibility", "areas", "size"):
        np.testing.assert_array_equal(truth.values["keypoints"][name], value()[name])


def test_webdataset_writer_writes_keypoints_as_lists(tmp_path: Path) -> None:
    export("webdataset", tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        member = tar.extractfile("0" * 16 + ".things.json")
        assert member is not None
        label = json.load(member)
    assert label["keypoints"] == value()["keypoints"].tolist()
    assert label["visibility"] == [[2, 1, 0], [0, 0, 0]]


def test_hf_writer_writes_keypoints_beside_boxes(tmp_path: Path) -> None:
    export("hf", tmp_path / "out")
    [file] = (tmp_path / "out" / "data").iterdir()
    [objects] = pq.read_table(file).column("things_objects").to_pylist()
    assert objects["keypoints"] == [[10.5, 8, 2, 14, 7.25, 1, 0, 0, 0], [0] * 9]
    assert objects["keypoint_scores"] == [[0.75, 0.5, 0], [0, 0, 0]]
    assert objects["area"] == [200.5, 100]
    assert objects["bbox"][0] == [4.5, 2.5, 26, 18.5]


@pytest.mark.parametrize("form", ["yolo", "masks", "fiftyone", "panoptic"])
def test_forms_without_a_place_for_keypoints_say_which_tasks_they_hold(form: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--to {form} can hold labels for .* the heads are things \(keypoints\)"):
        export(form, tmp_path / "out")


def test_to_json_names_the_known_keypoints() -> None:
    first, second = to_json(LABEL, value())["objects"]
    assert (first["class"], first["score"]) == ("dog", 0.9)
    assert first["keypoints"] == {"nose": [10.5, 8, 0.75], "left_eye": [14, 7.25, 0.5]}
    assert second["keypoints"] == {}
