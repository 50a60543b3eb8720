"""COCO export, read back by pycocotools and by our own source: exactly the boxes and masks of the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from pipeline.export import to_image_size
from pipeline.sources import coco
from tests.exports import export, samples

if TYPE_CHECKING:
    from tests.conftest import World

IGNORE = 65535
LOW: dict[str, Any] = {"thresholds": {"boxes": 0.02, "masks": 0.0}}
"""Thresholds low enough to keep many labels of barely trained teachers."""


def test_coco_writer_boxes_are_read_by_pycocotools(world: World, tmp_path: Path) -> None:
    wanted = samples(world, ["boxes"], **LOW)
    summary = export(world, "coco", tmp_path / "out", ["boxes"], **LOW)
    found = COCO(str(tmp_path / "out" / "instances_train.json"))
    assert [each["name"] for each in found.loadCats(found.getCatIds())] == summary["heads"]["boxes"]["classes"]
    assert {found.imgs[i]["file_name"] for i in found.getImgIds()} == {each.file_name for each in wanted.values()}
    for number, image in found.imgs.items():
        sample = wanted[image["file_name"].partition(".")[0]]
        assert (image["width"], image["height"]) == sample.size
        assert (tmp_path / "out" / "images" / "train" / image["file_name"]).read_bytes() == sample.data
        annotations = found.loadAnns(found.getAnnIds(number))
        boxes = np.array([each["bbox"] for each in annotations]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        value = sample.values["boxes"]
        np.testing.assert_array_equal(boxes.astype(np.float32), value["boxes"])
        assert [each["score"] for each in annotations] == value["scores"].tolist()
        assert [each["category_id"] - 1 for each in annotations] == value["classes"].tolist()
    assert summary["heads"]["boxes"]["written"] == {"images": len(wanted), "annotations": len(found.anns)}
    assert any(each["score"] < 1 for each in found.anns.values()), "only true labels"


def test_coco_writer_masks_are_decoded_by_pycocotools(world: World, tmp_path: Path) -> None:
    wanted = samples(world, ["masks"], **LOW)
    export(world, "coco", tmp_path / "out", ["masks"], **LOW)
    found = COCO(str(tmp_path / "out" / "stuff_train.json"))
    sizes = set()
    for number, image in found.imgs.items():
        sample = wanted[image["file_name"].partition(".")[0]]
        value = sample.values["masks"]
        sizes.add(value["classes"].shape)
        classes = np.full(sample.size[::-1], IGNORE, np.uint16)
        for annotation in found.loadAnns(found.getAnnIds(number)):
            mask = found.annToMask(annotation).astype(bool)
            assert (classes[mask] == IGNORE).all(), "masks overlap"
            assert annotation["area"] == mask.sum()
            classes[mask] = annotation["category_id"] - 1
            confidence = to_image_size(value["confidence"], sample.size)[mask]
            assert annotation["score"] == pytest.approx(confidence.mean(), abs=1e-6)
        np.testing.assert_array_equal(classes, to_image_size(value["classes"], sample.size))
    assert len(sizes) == 2, "the test needs true labels at the image's size and coarser ones of a teacher"
    again = found.loadRes(list(found.anns.values()))
    assert len(again.anns) == len(found.anns) > 0


def test_coco_writer_boxes_are_read_by_coco_source(world: World, tmp_path: Path) -> None:
    wanted = samples(world, ["boxes"], **LOW)
    export(world, "coco", tmp_path / "out", ["boxes"], **LOW)
    source = coco.Source(coco.Config(path=str(tmp_path / "out")))
    assert source.spaces()["detection"].classes == ("box", "cone", "cylinder", "pyramid", "sphere", "torus")
    records = list(source.records())
    assert not source.problems
    assert len(records) == len(wanted)
    for record in records:
        sample = wanted[Path(record.name).stem]
        assert (record.split, record.read()) == ("train", sample.data)
        truth = record.truth(sample.size)
        clipped = np.clip(sample.values["boxes"]["boxes"], 0, np.tile(sample.size, 2)).astype(np.float32)
        np.testing.assert_array_equal(truth.values["detection"]["boxes"], clipped)
        np.testing.assert_array_equal(truth.values["detection"]["classes"], sample.values["boxes"]["classes"])


def test_coco_writer_writes_a_file_per_head(world: World, tmp_path: Path) -> None:
    summary = export(world, "coco", tmp_path / "out")
    assert {head: about["where"] for head, about in summary["heads"].items()} == {
        "boxes": "instances_train.json",
        "masks": "stuff_train.json",
    }
    assert set(summary["left_out"]) == {"kinds", "depth", "gabor"}
    assert "coco has no place for classification" in summary["left_out"]["kinds"]
