"""Exports of instance masks: COCO's read back by pycocotools and our own source, and the other forms' pixels."""

from __future__ import annotations

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
from pipeline.stores.rle import decode_mask, encode_mask, rle_array

SIZE = (48, 32)
SPACE = LabelSpace("masks", ("cup", "plate"))
LABEL = tasks.label(SPACE)


def value() -> Value:
    """Return two objects that overlap, the first with a hole, and boxes that are larger than the masks."""
    masks = np.zeros((2, 32, 48), bool)
    masks[0, 3:20, 5:30] = masks[1, 10:30, 20:40] = True
    masks[0, 8:12, 10:15] = False
    return {
        "boxes": np.array([[4.5, 2.5, 30.5, 21], [19, 9.25, 41, 31]], np.float32),
        "scores": np.array([0.9, 0.25], np.float32),
        "classes": np.array([1, 0], np.int32),
        "size": np.array(SIZE, np.int32),
        "masks": rle_array(map(encode_mask, masks)),
    }


def export(form: str, out: Path, heads: dict[str, str] | None = None) -> dict[str, Any]:
    """Export an image, of which each head has the label; heads by name with their tasks."""
    spaces = {head: LabelSpace(task, SPACE.classes) for head, task in (heads or {"things": "masks"}).items()}
    picture = out.parent / "a.png"
    Image.new("RGB", SIZE).save(picture)
    found = {head: value() if space.task == "masks" else without_masks() for head, space in spaces.items()}
    sample = ExportSample("0" * 16, picture.read_bytes(), "png", SIZE, "a.png", found)
    return write_export(form, out, {head: tasks.label(space) for head, space in spaces.items()}, [sample], {})


def without_masks() -> Value:
    return {name: array for name, array in value().items() if name != "masks"}


def test_coco_writer_masks_of_objects_are_read_by_pycocotools_and_by_coco_source(tmp_path: Path) -> None:
    export("coco", tmp_path / "out")
    found = COCO(str(tmp_path / "out" / "instances_train.json"))
    expected = [decode_mask(mask, SIZE) for mask in value()["masks"]]
    for annotation, mask in zip(found.anns.values(), expected, strict=True):
        np.testing.assert_array_equal(found.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
    source = coco.Source(coco.Config(path=str(tmp_path / "out"), masks=True))
    [record] = source.records()
    truth = record.truth(SIZE)
    assert not truth.notes
    for name in ("boxes", "classes", "masks", "size"):
        np.testing.assert_array_equal(truth.values["masks"][name], value()[name])


def test_coco_writer_names_files_after_heads_where_boxes_and_masks_are_written(tmp_path: Path) -> None:
    summary = export("coco", tmp_path / "out", {"boxes": "detection", "things": "masks"})
    assert {head: about["where"] for head, about in summary["heads"].items()} == {
        "boxes": "instances_boxes_train.json",
        "things": "instances_things_train.json",
    }


def test_webdataset_writer_writes_masks_as_text(tmp_path: Path) -> None:
    export("webdataset", tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        member = tar.extractfile("0" * 16 + ".things.json")
        assert member is not None
        label = json.load(member)
    assert label["masks"] == [mask.decode() for mask in value()["masks"].tolist()]
    assert label["classes"] == [1, 0]


def test_hf_writer_writes_masks_beside_boxes(tmp_path: Path) -> None:
    export("hf", tmp_path / "out")
    [file] = (tmp_path / "out" / "data").iterdir()
    [objects] = pq.read_table(file).column("things_objects").to_pylist()
    assert objects["segmentation"] == [mask.decode() for mask in value()["masks"].tolist()]
    assert objects["area"] == [17 * 25 - 20, 400]
    assert objects["bbox"][0] == [4.5, 2.5, 26, 18.5]


def test_fiftyone_writer_writes_each_mask_as_picture_of_its_box(tmp_path: Path) -> None:
    export("fiftyone", tmp_path / "out")
    [sample] = json.loads((tmp_path / "out" / "samples.json").read_text())["samples"]
    for document, text in zip(sample["things"]["detections"], value()["masks"], strict=True):
        x, y, width, height = np.array(document["bounding_box"]) * [*SIZE, *SIZE]
        pixels = np.asarray(Image.open(tmp_path / "out" / document["mask_path"])) > 0
        assert pixels.shape == (round(height), round(width))
        whole = np.zeros(SIZE[::-1], bool)
        whole[round(y) : round(y + height), round(x) : round(x + width)] = pixels
        np.testing.assert_array_equal(whole, decode_mask(text, SIZE))


@pytest.mark.parametrize("form", ["yolo", "masks"])
def test_forms_without_a_place_for_masks_of_objects_say_which_tasks_they_hold(form: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--to {form} can hold labels for .*, and the heads are things \(masks\)"):
        export(form, tmp_path / "out")


def test_to_json_has_masks_with_their_areas() -> None:
    first, second = to_json(LABEL, value())["objects"]
    assert (first["class"], first["area"], second["area"]) == ("plate", 405, 400)
    assert first["mask"] == {"size": [32, 48], "counts": value()["masks"][0].decode()}
