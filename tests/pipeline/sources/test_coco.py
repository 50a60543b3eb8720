"""The coco source: sparse category ids, bad boxes, missing images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, coco
from pipeline.storage.path import StoragePath
from tests.s3 import listening

CATEGORIES = [
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    {"id": 3, "name": "car", "supercategory": "vehicle"},
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 8, "name": "truck", "supercategory": "vehicle"},
]
SIZE = (100, 50)


def write(
    root: Path, boxes: list[dict[str, Any]], images: list[dict[str, Any]] | None = None, split: str = "train"
) -> None:
    (root / "images" / split).mkdir(parents=True, exist_ok=True)
    entries = images or [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 50}]
    for entry in entries:
        Image.new("RGB", SIZE).save(root / "images" / split / Path(entry["file_name"]).name)
    content = {"images": entries, "annotations": boxes, "categories": CATEGORIES}
    (root / f"instances_{split}.json").write_text(json.dumps(content))


def box(bbox: Any, category: Any = 3, image: Any = 7, **more: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0, **more}


def open_source(root: Path, **options: Any) -> coco.Source:
    return coco.Source(coco.Config(path=str(root), **options))


def single_record(source: coco.Source) -> SourceRecord:
    (record,) = source.records()
    return record


def test_coco_source_names_an_annotation_file_that_lists_no_image(tmp_path: Path) -> None:
    write(tmp_path, [])
    (tmp_path / "instances_train.json").write_text(json.dumps({"images": [], "categories": CATEGORIES}))
    with pytest.raises(DataError, match=f"^{tmp_path}/instances_train.json: lists no image"):
        list(open_source(tmp_path).records())


def test_coco_source_reads_corners_and_class_indices(tmp_path: Path) -> None:
    write(tmp_path, [box([10, 5, 30, 20.5]), box([0, 0, 100, 50], 90), box([1, 1, 2, 2], 1)])
    source = open_source(tmp_path)
    assert source.spaces()["detection"].classes == ("person", "car", "truck", "toothbrush")
    truth = single_record(source).truth(SIZE)
    value = truth.values["detection"]
    assert value["boxes"].tolist() == [[10, 5, 40, 25.5], [0, 0, 100, 50], [1, 1, 3, 3]]
    assert value["classes"].tolist() == [1, 3, 0]
    assert value["scores"].tolist() == [1, 1, 1]
    assert value["size"].tolist() == [100, 50]
    assert [value[name].dtype for name in ("boxes", "scores", "classes", "size")] == [
        *(np.float32, np.float32, np.int32, np.int32)
    ]
    assert truth.notes == []


def test_coco_source_gives_multilabel_truths_if_asked_for(tmp_path: Path) -> None:
    """Crowds and dropped boxes count; an image without annotations has none of the classes."""
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}]
    given = [box([1, 1, 9, 9], 90), box([1, 1, 9, 9], 90), box([1, 1, 9, 9], 1, iscrowd=1), box(None, 8)]
    write(tmp_path, given, images)
    assert set(open_source(tmp_path).spaces()) == {"detection"}
    source = open_source(tmp_path, multilabel=True)
    spaces = source.spaces()
    assert spaces["multilabel"].classes == spaces["detection"].classes == ("person", "car", "truck", "toothbrush")
    first, second = (record.truth(SIZE).values for record in source.records())
    assert first["multilabel"]["probs"].tolist() == [1, 0, 1, 1]
    assert second["multilabel"]["probs"].tolist() == [0, 0, 0, 0]
    assert len(first["detection"]["boxes"]) == 2
    assert first["multilabel"]["probs"].dtype == np.float32


def test_coco_source_orders_supercategories_by_first_id(tmp_path: Path) -> None:
    write(tmp_path, [box([0, 0, 5, 5], 8), box([0, 0, 5, 5], 90)])
    source = open_source(tmp_path, classes="supercategory")
    assert source.spaces()["detection"].classes == ("person", "vehicle", "indoor")
    assert single_record(source).truth(SIZE).values["detection"]["classes"].tolist() == [1, 2]


def test_coco_source_reads_numbers_that_are_written_as_text(tmp_path: Path) -> None:
    write(tmp_path, [box(["10", 5.0, "3e1", 20.5], "3", "7", iscrowd="0"), box([0, 0, 5, 5], 3.0, 7.0, iscrowd=None)])
    content = json.loads((tmp_path / "instances_train.json").read_text())
    content["images"][0] |= {"id": "7", "width": "100", "height": 50.0}
    content["categories"][1] |= {"id": "3", "name": 5}
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    source = open_source(tmp_path)
    truth = single_record(source).truth(SIZE)
    assert source.spaces()["detection"].classes == ("person", "5", "truck", "toothbrush")
    assert truth.values["detection"]["boxes"].tolist() == [[10, 5, 40, 25.5], [0, 0, 5, 5]]
    assert truth.values["detection"]["classes"].tolist() == [1, 1]
    assert not truth.notes
    assert not source.problems


def test_coco_source_takes_ids_that_are_text(tmp_path: Path) -> None:
    images: list[dict[str, Any]] = [
        {"id": "0a7", "file_name": "a.jpg"},
        {"id": "07", "file_name": "b.jpg"},
        {"id": 7, "file_name": "c.jpg"},
    ]
    write(tmp_path, [box([0, 0, number, 9], image=name) for number, name in ((1, "0a7"), (2, "07"), (3, "7"))], images)
    widths = [record.truth(SIZE).values["detection"]["boxes"][0, 2] for record in open_source(tmp_path).records()]
    assert widths == [1, 2, 3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_coco_source_reads_json_in_its_encodings(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, [box([0, 0, 5, 5])])
    file = tmp_path / "instances_train.json"
    file.write_bytes(file.read_text().replace("truck", "cami\u00f3n").encode(encoding))
    assert open_source(tmp_path).spaces()["detection"].classes[2] == "cami\u00f3n"


def test_coco_source_reads_the_names_of_lvis(tmp_path: Path) -> None:
    write(tmp_path, [])
    file = tmp_path / "instances_train.json"
    file.write_text(file.read_text().replace('"file_name": "', '"coco_url": "http://images.cocodataset.org/train/'))
    record = single_record(open_source(tmp_path, images={"train": "images"}))
    assert record.name == "images/train/a.jpg"
    assert record.read()


def test_coco_source_loses_an_image_without_name_alone(tmp_path: Path) -> None:
    write(tmp_path, [box([0, 0, 5, 5])])
    file = tmp_path / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"].append({"id": 9})
    content["annotations"].append({"category_id": 3, "bbox": [0, 0, 5, 5]})
    file.write_text(json.dumps(content))
    source = open_source(tmp_path)
    assert single_record(source).name == "images/train/a.jpg"
    assert source.problems == [
        ("instances_train.json", "has 1 annotations without an image_id"),
        ("instances_train.json image 9", "has no file_name"),
    ]


@pytest.mark.parametrize(("width", "refused"), [("", False), (None, False), ("wide", True), (1.5, True), ([1], True)])
def test_coco_source_checks_a_size_that_is_stated(tmp_path: Path, width: object, refused: bool) -> None:
    write(tmp_path, [], [{"id": 7, "file_name": "a.jpg", "width": width, "height": 50}])
    record = single_record(open_source(tmp_path))
    if not refused:
        assert not record.truth(SIZE).notes
        return
    with pytest.raises(DataError, match=r"the annotations say .* x 50 pixels, which are not two numbers"):
        record.truth(SIZE)


@pytest.mark.parametrize("iscrowd", [0, "0", 0.0, False, "false", None, ""])
def test_coco_source_reads_what_means_no_crowd(tmp_path: Path, iscrowd: object) -> None:
    write(tmp_path, [box([10, 10, 5, 5], iscrowd=iscrowd)])
    truth = single_record(open_source(tmp_path)).truth(SIZE)
    assert len(truth.values["detection"]["boxes"]) == 1
    assert not truth.notes


@pytest.mark.parametrize(
    ("given", "kept", "note"),
    [
        (box([10, 10, 5, 5], iscrowd="True"), [], "crowd box dropped"),
        (box([10, 10, 5, 5], iscrowd=2), [], "box with iscrowd 2 dropped"),
        (box([10, 10, 5, 5], category=None), [], "annotation without a category dropped"),
        (box([90, 40, 30, 30]), [[90, 40, 100, 50]], "box clipped to the image"),
        (box([-5, -5, 10, 10]), [[0, 0, 5, 5]], "box clipped to the image"),
        (box([100, 10, 10, 10]), [], "box outside the image dropped"),
        (box([-20, 10, 20, 10]), [], "box outside the image dropped"),
        (box([10, 10, 0, 10]), [], "empty box dropped"),
        (box([10, 10, 5, -2]), [], "empty box dropped"),
        (box([10, 10, 5, 5], iscrowd=1), [], "crowd box dropped"),
        (box([10, 10, 5, float("nan")]), [], "box without four numbers dropped"),
        (box([10, 10, 5]), [], "box without four numbers dropped"),
        (box(None), [], "box without four numbers dropped"),
    ],
)
def test_coco_source_drops_or_clips_bad_boxes_with_a_note(
    tmp_path: Path, given: dict[str, Any], kept: list[list[float]], note: str
) -> None:
    write(tmp_path, [given])
    truth = single_record(open_source(tmp_path)).truth(SIZE)
    assert truth.values["detection"]["boxes"].tolist() == kept
    assert truth.values["detection"]["boxes"].shape == (len(kept), 4)
    assert truth.notes == [f"{note}: annotation 5"]


def test_coco_source_gives_no_boxes_without_annotations(tmp_path: Path) -> None:
    write(tmp_path, [])
    truth = single_record(open_source(tmp_path)).truth(SIZE)
    assert truth.values["detection"]["boxes"].shape == (0, 4)
    assert truth.values["detection"]["classes"].dtype == np.int32
    assert truth.notes == []


def test_coco_source_names_missing_image(tmp_path: Path) -> None:
    write(tmp_path, [])
    (tmp_path / "images/train/a.jpg").unlink()
    record = single_record(open_source(tmp_path))
    with pytest.raises(DataError, match=f"{tmp_path}/images/train/a.jpg: there is no such file"):
        record.read()


def test_coco_source_quarantines_image_with_unknown_category(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}]
    write(tmp_path, [box([0, 0, 5, 5], category=44), box([0, 0, 5, 5], image=8)], images)
    bad, good = open_source(tmp_path).records()
    with pytest.raises(DataError, match="category id 44 is not among the categories"):
        bad.truth(SIZE)
    assert len(good.truth(SIZE).values["detection"]["boxes"]) == 1


def test_coco_source_checks_size_and_suspects_exif(tmp_path: Path) -> None:
    write(tmp_path, [])
    record = single_record(open_source(tmp_path))
    with pytest.raises(DataError, match=r"100x50, the upright image 50x100.*EXIF"):
        record.truth((50, 100))
    with pytest.raises(DataError, match=r"the annotations say 100x50, the upright image 200x100$"):
        record.truth((200, 100))


def test_coco_source_orders_records_by_file_name(tmp_path: Path) -> None:
    write(tmp_path, [], [{"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "a.jpg"}])
    write(tmp_path, [], [{"id": 1, "file_name": "b.jpg"}], split="val")
    found = [(record.name, record.split) for record in open_source(tmp_path).records()]
    assert found == [("images/train/a.jpg", "train"), ("images/train/b.jpg", "train"), ("images/val/b.jpg", "val")]


def test_coco_config_states_annotations_and_images(tmp_path: Path) -> None:
    write(tmp_path / "x", [box([0, 0, 5, 5])])
    (tmp_path / "x/images/train").rename(tmp_path / "photos")
    (tmp_path / "x/instances_train.json").rename(tmp_path / "labels.json")
    source = open_source(tmp_path, annotations={"test": "labels.json"}, images={"test": str(tmp_path / "photos")})
    record = single_record(source)
    assert (record.name, record.split) == ("photos/a.jpg", "test")
    assert record.read()


def test_coco_source_joins_the_annotations_of_an_image_that_is_listed_twice(tmp_path: Path) -> None:
    entries = [{"id": number, "file_name": "a.jpg", "width": 100, "height": 50} for number in (7, 77)]
    write(tmp_path, [box([0, 0, 5, 5]), box([9, 9, 5, 5], image=77)], entries)
    source = open_source(tmp_path)
    truth = single_record(source).truth(SIZE)
    assert truth.values["detection"]["boxes"].tolist() == [[0, 0, 5, 5], [9, 9, 14, 14]]
    assert (truth.annotations, source.stray_annotations, source.problems) == (2, 0, [])


def test_coco_source_counts_annotations_of_an_image_that_another_split_has(tmp_path: Path) -> None:
    write(tmp_path, [box([0, 0, 5, 5])])
    (tmp_path / "instances_val.json").write_bytes((tmp_path / "instances_train.json").read_bytes())
    source = open_source(tmp_path, images={"train": "images/train", "val": "images/train"})
    assert len(list(source.records())) == source.stray_annotations == 1


def test_coco_source_refuses_classes_that_look_alike(tmp_path: Path) -> None:
    write(tmp_path, [])
    content = json.loads((tmp_path / "instances_train.json").read_text())
    content["categories"] = [{"id": 1, "name": "Cat"}, {"id": 2, "name": " cat"}]
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"the classes 'Cat' and ' cat' differ only by case, accents or spaces"):
        open_source(tmp_path).spaces()


def test_coco_source_reads_backslashes_as_folders(tmp_path: Path) -> None:
    write(tmp_path, [], [{"id": 1, "file_name": "day\\a.jpg"}])
    (tmp_path / "images/train/day").mkdir()
    (tmp_path / "images/train/day\\a.jpg").rename(tmp_path / "images/train/day/a.jpg")
    record = single_record(open_source(tmp_path))
    assert record.name == "images/train/day/a.jpg"
    assert record.read()


def test_coco_source_reports_duplicate_images_and_unlisted_annotations(tmp_path: Path) -> None:
    write(tmp_path, [box([0, 0, 5, 5], image=99)])
    (tmp_path / "instances_val.json").write_bytes((tmp_path / "instances_train.json").read_bytes())
    source = open_source(tmp_path, images={"train": "images/train", "val": "images/train"})
    assert [(record.name, record.split) for record in source.records()] == [("images/train/a.jpg", "train")]
    assert source.problems == [
        ("instances_train.json", "has annotations of 1 images that it does not list, first 99"),
        ("instances_val.json", "has annotations of 1 images that it does not list, first 99"),
        ("images/train/a.jpg", "listed twice, the second time in split 'val'"),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not COCO annotations"),
        ("[]", "not COCO annotations"),
        ('{"images": []}', "categories: Field required"),
        ('{"images": [{"file_name": "a"}], "categories": []}', "images.0.id: Field required"),
        ('{"images": [{"id": 1, "file_name": [1]}], "categories": []}', "images.0.file_name: "),
        ('{"images": [{"id": [1], "file_name": "a"}], "categories": []}', r"images.0.id.* \(value \[1\]\)"),
        ('{"images": [{"id": true, "file_name": "a"}], "categories": []}', "an id is a whole number or a text"),
        ('{"images": [], "categories": [{"id": 1}]}', "the category 1 has no name"),
        (
            '{"images": [], "categories": [{"id": 1, "name": [1]}]}',
            r"the category 1 has the name \[1\], which is no text",
        ),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "the id 1 is of 'a' and of 'b'",
        ),
        ('{"images": [], "categories": [], "annotations": [null]}', "annotations.0: "),
        ('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}", "recursion limit"),
        ('{"images": [], "categories": [], "annotations": {}}', "annotations: .*valid array"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "categories": []}', "the same id"),
    ],
)
def test_coco_source_refuses_other_json(tmp_path: Path, content: str, reason: str) -> None:
    write(tmp_path, [])
    (tmp_path / "instances_train.json").write_text(content)
    with pytest.raises(DataError, match=f"instances_train.json: {reason}|instances_train.json: .*{reason}"):
        open_source(tmp_path).spaces()


def test_coco_source_refuses_splits_with_different_categories(tmp_path: Path) -> None:
    write(tmp_path, [])
    write(tmp_path, [], split="val")
    file = tmp_path / "instances_val.json"
    file.write_text(file.read_text().replace("truck", "lorry"))
    with pytest.raises(DataError, match="category 8 is 'truck' and 'lorry'"):
        open_source(tmp_path).spaces()


def test_coco_source_names_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no instances_train.json in .*state the files as `annotations`"):
        open_source(tmp_path)
    write(tmp_path, [])
    with pytest.raises(ConfigError, match=r"annotations.val: there is no file .*/missing.json"):
        open_source(tmp_path, annotations={"val": "missing.json"})
    (tmp_path / "images").rename(tmp_path / "pictures")
    with pytest.raises(ConfigError, match="no images of split 'train': there is none of images/train, train"):
        open_source(tmp_path)


def test_coco_source_file_stamps_cover_annotations_and_images(tmp_path: Path) -> None:
    write(tmp_path, [])
    assert [row[0] for row in open_source(tmp_path).file_stamps()] == ["images/train/a.jpg", "instances_train.json"]


def test_coco_source_lists_remote_images_in_one_request(tmp_path: Path, bucket: str) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(5)]
    write(tmp_path, [], images)
    (tmp_path / "images" / "train" / "3.jpg").rename(tmp_path / "images" / "train" / ".3.jpg")
    for path in tmp_path.rglob("*.jp*"):
        StoragePath.of(f"{bucket}/{path.relative_to(tmp_path)}").write(path.read_bytes())
    StoragePath.of(f"{bucket}/instances_train.json").write((tmp_path / "instances_train.json").read_bytes())
    source = coco.Source(coco.Config(path=bucket))
    with listening() as requests:
        records = {record.name: record for record in source.records()}
        stamps = {name: record.stamp() for name, record in records.items() if "3.jpg" not in name}
    assert requests.count() == {"GET": 2}, "the annotations and one listing"
    assert {name: stamp for name, *stamp in source.file_stamps() if name in stamps} == {
        name: list(stamp or ()) for name, stamp in stamps.items()
    }
    assert len(stamps) == 4
    with pytest.raises(DataError, match=r"3\.jpg: there is no such file"):
        records["images/train/3.jpg"].read()
