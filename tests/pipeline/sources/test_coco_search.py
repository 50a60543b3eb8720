"""`must init` finds COCO's files by their content, wherever they and their images lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ingest.init import detect_source
from pipeline.errors import DataError
from pipeline.sources import SourceRecord, coco

SIZE = (40, 30)


def write_coco(file: Path, names: list[str], first: int = 0) -> None:
    images = [{"id": first + number, "file_name": name} for number, name in enumerate(names)]
    boxes = [
        {"id": 1, "image_id": image["id"], "category_id": 3, "bbox": [number, 2, 10, 20]}
        for number, image in enumerate(images)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps({"info": {}, "images": images, "annotations": boxes, "categories": [{"id": 3, "name": "fish"}]})
    )


def write_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (number, 1, 2)).save(folder / name)


NAMES = [f"{number}.jpg" for number in range(30)]


def read(root: Path) -> tuple[dict[str, Any], dict[str, SourceRecord]]:
    found = detect_source(root)
    assert (found.entry["kind"], found.tasks) == ("coco", ("detection",))
    return dict(found.entry), {record.name: record for record in found.source.records()}


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("result.json", "."),
        ("export-3.json", "images"),
        ("labels/all.json", "photos/day"),
        ("photos/day/a.json", "photos"),
        ("annotations/instances_default.json", "images/default"),
        ("annotations/instances_train.json", "pictures"),
    ],
)
def test_search_annotations_finds_one_file_and_its_images(annotations: str, images: str, tmp_path: Path) -> None:
    write_coco(tmp_path / annotations, NAMES)
    write_images(tmp_path / images, NAMES)
    write_images(tmp_path / "others", ["0.jpg"])
    entry, records = read(tmp_path)
    assert entry["annotations"] == {"train": annotations}
    assert entry["images"] == {"train": images}
    assert entry["hold_out"] == 0.2
    assert set(records) == {str(Path(images) / name) for name in NAMES}
    assert {record.split for record in records.values()} == {"train", "test"}
    for name, record in records.items():
        number = int(Path(name).stem)
        assert record.read()
        assert record.truth(SIZE).values["detection"]["boxes"].tolist() == [[number, 2, number + 10, 22]]


def test_search_annotations_takes_splits_from_names(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_coco(tmp_path / f"my_{split}.json", [f"{split}/{name}" for name in NAMES])
        write_images(tmp_path / "data" / split, NAMES)
    entry, records = read(tmp_path)
    assert entry["annotations"] == {"test": "my_test.json", "train": "my_train.json", "val": "my_validation.json"}
    assert set(entry["images"].values()) == {"data"}
    assert "hold_out" not in entry
    assert all(record.split[:3] in name for name, record in records.items())


def test_search_annotations_takes_the_folder_in_which_most_images_are(tmp_path: Path) -> None:
    write_coco(tmp_path / "x.json", NAMES)
    write_images(tmp_path / "few", NAMES[:3])
    write_images(tmp_path / "most", NAMES)
    assert read(tmp_path)[0]["images"] == {"train": "most"}


def test_search_annotations_refuses_two_files_of_one_split(tmp_path: Path) -> None:
    for name in ("train_old.json", "train_new.json"):
        write_coco(tmp_path / name, NAMES)
    write_images(tmp_path, NAMES)
    with pytest.raises(DataError, match=r"train_new.json and .*train_old.json both hold annotations of split 'train'"):
        detect_source(tmp_path)
    for name in ("old", "new"):
        (tmp_path / f"train_{name}.json").rename(tmp_path / f"{name}.json")
    with pytest.raises(DataError, match=r"new.json: is one of several files of COCO's, and its name tells no split"):
        detect_source(tmp_path)


def test_search_annotations_names_a_file_whose_images_are_not_there(tmp_path: Path) -> None:
    write_coco(tmp_path / "x.json", ["a/b.jpg"])
    write_images(tmp_path, ["b.jpg"])
    with pytest.raises(DataError, match=r"x.json: of the images that it lists, none is in .*; the first is 'a/b.jpg'"):
        detect_source(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"images": [1]}', '[{"image_id": 1}]', '{"shapes": []}', "{", "\ud800", '{"categories": [{"id": 1}]}', ""]
)
def test_search_annotations_passes_other_json_over(text: str, tmp_path: Path) -> None:
    write_images(tmp_path, NAMES[:2])
    for name in ("x.json", "y.json"):
        (tmp_path / name).write_text(text, "utf-8", "surrogatepass")
    found = detect_source(tmp_path)
    assert found.entry["kind"] == "folder"
    assert "not read: 2 .json. If these are COCO's" in found.describe()


def test_coco_source_holds_out_a_share_of_train_alone(tmp_path: Path) -> None:
    write_coco(tmp_path / "instances_train.json", NAMES)
    write_images(tmp_path / "images", NAMES)

    def splits(**options: Any) -> set[str]:
        source = coco.Source(coco.Config(path=str(tmp_path), **options))
        return {record.split for record in source.records()}

    assert splits() == {"train"}
    assert splits(hold_out=0.5) == {"train", "test"}
    assert splits(hold_out=1) == {"test"}
    write_coco(tmp_path / "instances_val.json", NAMES[:0])
    assert splits(hold_out=0.5) == {"train"}
