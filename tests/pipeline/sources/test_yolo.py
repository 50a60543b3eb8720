"""The yolo source: layouts, data.yaml, boxes in pixels, and texts that have no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ingest.init import detect_source
from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, TrueLabels, yolo

SIZE = (200, 100)
NAMES = {0: "car", 1: "person", 3: "dog"}
TEXT = "0 0.5 0.5 0.25 0.5\n3 0.1 0.2 0.1 0.2\n"
BOXES = [[75, 25, 125, 75], [10, 10, 30, 30]]


def write_pair(image: Path, label: Path, text: str = TEXT) -> None:
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE).save(image)
    label.write_text(text)


def describe(root: Path, name: str = "data.yaml", **content: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(yaml.safe_dump({"names": NAMES, **content}))


def open_source(root: Path, **options: Any) -> yolo.Source:
    return yolo.Source(yolo.Config(path=str(root), **options))


def records_of(root: Path, **options: Any) -> dict[str, SourceRecord]:
    return {record.name: record for record in open_source(root, **options).records()}


def truth_of(root: Path, text: str, **options: Any) -> TrueLabels:
    write_pair(root / "a.jpg", root / "a.txt", text)
    if not (root / "data.yaml").exists():
        describe(root)
    (record,) = open_source(root, **options).records()
    return record.truth(SIZE)


@pytest.mark.parametrize(
    ("image", "label", "split"),
    [
        ("images/train/a.jpg", "labels/train/a.txt", "train"),
        ("train/images/a.jpg", "train/labels/a.txt", "train"),
        ("valid/images/deep/a.jpg", "valid/labels/deep/a.txt", "val"),
        ("images/test/a.b.jpg", "labels/test/a.b.txt", "test"),
        ("test/a.jpg", "test/a.txt", "test"),
        ("JPEGImages/val/a.jpg", "labels/val/a.txt", "val"),
    ],
)
def test_yolo_source_pairs_images_and_texts_in_every_layout(image: str, label: str, split: str, tmp_path: Path) -> None:
    write_pair(tmp_path / image, tmp_path / label)
    describe(tmp_path)
    (record,) = records_of(tmp_path, hold_out=0).values()
    assert (record.name, record.split) == (image, split)
    assert record.read() == (tmp_path / image).read_bytes()
    value = record.truth(SIZE).values["detection"]
    np.testing.assert_allclose(value["boxes"], BOXES, rtol=1e-6)
    assert value["classes"].tolist() == [0, 2]
    assert value["size"].tolist() == list(SIZE)
    assert detect_source(tmp_path).entry["kind"] == "yolo"


def test_yolo_source_reads_what_is_written_exactly(tmp_path: Path) -> None:
    corners = np.random.default_rng(0).integers(0, 50, (20, 4)) + np.array([0, 0, 51, 50])
    lines = []
    for x0, y0, x1, y1 in corners:
        numbers = ((x0 + x1) / 2 / SIZE[0], (y0 + y1) / 2 / SIZE[1], (x1 - x0) / SIZE[0], (y1 - y0) / SIZE[1])
        lines.append(" ".join(["1", *(f"{number:.9f}" for number in numbers)]))
    value = truth_of(tmp_path, "\n".join(lines)).values["detection"]
    np.testing.assert_allclose(value["boxes"], corners, atol=1e-5)
    assert value["classes"].tolist() == [1] * 20


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["car", "person"], ("car", "person")),
        ({0: "car", 5: "person"}, ("car", "person")),
        ({"1": "b", "0": "a"}, ("a", "b")),
        ({0: "thing", 1: 7, 2: "thing"}, ("thing", "7")),
    ],
)
def test_yolo_source_reads_names_as_list_or_mapping(names: Any, classes: tuple[str, ...], tmp_path: Path) -> None:
    describe(tmp_path, names=names)
    assert open_source(tmp_path).spaces()["detection"].classes == classes


@pytest.mark.parametrize("name", ["classes.txt", "labels/classes.txt", "obj.names", "train/_darknet.labels"])
def test_yolo_source_reads_names_from_a_list(name: str, tmp_path: Path) -> None:
    write_pair(tmp_path / "images/a.jpg", tmp_path / "labels/a.txt", "1 0.5 0.5 1 1\n")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("car\nperson\n")
    source = open_source(tmp_path, hold_out=0)
    (record,) = source.records()
    assert source.classes == ("car", "person")
    assert record.truth(SIZE).values["detection"]["classes"].tolist() == [1]
    assert (source.problems, source.skipped.total()) == ([], 0)
    assert detect_source(tmp_path).entry["kind"] == "yolo"


@pytest.mark.parametrize(
    "stated",
    [
        {"train": "images/train", "val": "images/val"},
        {"path": "../datasets/things", "train": "images/train", "val": "images/val"},
        {"path": "/content/things", "train": "images/train", "val": "images/val"},
        {"train": "../images/train", "valid": "../images/val", "test": "../images/test"},
        {"train": "/content/things/images/train", "val": ["./images/val/"], "test": None},
        {"train": "C:\\things\\images\\train", "val": "images/val"},
        {"train": "lists/train.txt", "val": "lists/val.txt"},
    ],
)
def test_yolo_source_takes_splits_from_data_yaml(stated: dict[str, Any], tmp_path: Path) -> None:
    for split in ("train", "val", "extra"):
        write_pair(tmp_path / f"images/{split}/{split}.jpg", tmp_path / f"labels/{split}/{split}.txt")
    (tmp_path / "lists").mkdir()
    for split in ("train", "val"):
        (tmp_path / "lists" / f"{split}.txt").write_text(f"./images/{split}/{split}.jpg\n./images/gone.jpg\n")
    describe(tmp_path, **stated)
    source = open_source(tmp_path)
    splits = {record.name: record.split for record in source.records()}
    assert splits == {"images/train/train.jpg": "train", "images/val/val.jpg": "val"}
    assert source.skipped[".jpg of no split that is stated"] == 1
    assert source.problems == []


def test_yolo_source_takes_the_split_of_the_inner_folder(tmp_path: Path) -> None:
    for folder in ("images", "images/val"):
        write_pair(tmp_path / folder / "a.jpg", tmp_path / folder.replace("images", "labels") / "a.txt")
    describe(tmp_path, train="images", val="images/val")
    splits = {record.name: record.split for record in open_source(tmp_path).records()}
    assert splits == {"images/a.jpg": "train", "images/val/a.jpg": "val"}


def test_yolo_source_holds_out_an_image_that_two_lists_name(tmp_path: Path) -> None:
    describe(tmp_path, train="training.txt", val="val.txt")
    for name, listed in (("training", "ab"), ("val", "b")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{each}.jpg\n" for each in listed))
    for name in "ab":
        write_pair(tmp_path / f"{name}.jpg", tmp_path / f"{name}.txt")
    assert {record.name: record.split for record in open_source(tmp_path).records()} == {
        "a.jpg": "train",
        "b.jpg": "val",
    }


def test_yolo_source_holds_out_a_share_where_val_is_train_again(tmp_path: Path) -> None:
    for number in range(40):
        write_pair(tmp_path / f"images/train/{number}.jpg", tmp_path / f"labels/train/{number}.txt")
    describe(tmp_path, train="images/train", val="images/train")
    assert {record.split for record in records_of(tmp_path).values()} == {"train", "test"}
    assert {record.split for record in records_of(tmp_path, hold_out=0).values()} == {"train"}


def test_yolo_source_lists_images_outside_of_the_folders_of_splits(tmp_path: Path) -> None:
    describe(tmp_path)
    for folder in ("train", "test", "more"):
        write_pair(tmp_path / folder / "a.jpg", tmp_path / folder / "a.txt")
    source = open_source(tmp_path)
    assert [record.name for record in source.records()] == ["test/a.jpg", "train/a.jpg"]
    assert source.problems == [("more/a.jpg", "lies in no split's folder, as others do")]


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.1 0.2 0.5 0.2 0.3 0.6", [20, 20, 100, 60]),
        ("0 0.1 0.2 0.5 0.2 0.5 0.4 0.1 0.4", [20, 20, 100, 40]),
        ("0.0 5e-1 .5 1 1", [0, 0, 200, 100]),
        ("\t0  0.5 0.5 0.5 0.5 ", [50, 25, 150, 75]),
    ],
)
def test_yolo_source_takes_the_box_around_a_polygon(line: str, box: list[float], tmp_path: Path) -> None:
    truth = truth_of(tmp_path, f"\n{line}\n\n")
    np.testing.assert_allclose(truth.values["detection"]["boxes"], [box], rtol=1e-6)
    assert (truth.notes, truth.annotations, truth.dropped) == ([], 1, 0)


def test_yolo_source_reads_the_box_before_keypoints(tmp_path: Path) -> None:
    describe(tmp_path, kpt_shape=[1, 2])
    value = truth_of(tmp_path, "0 0.5 0.5 0.5 0.5 0.9 0.9\n").values["detection"]
    assert value["boxes"].tolist() == [[50, 25, 150, 75]]


@pytest.mark.parametrize(
    ("line", "kept", "note", "dropped"),
    [
        ("0 0.5 0.5 0 0.5", [], "empty box dropped: line 1", 1),
        ("0 0.5 0.5 -0.5 0.5", [], "empty box dropped: line 1", 1),
        ("0 1.5 0.5 0.5 0.5", [], "box outside the image dropped: line 1", 1),
        ("0 0 0 0.5 0.5", [[0, 0, 50, 25]], "box clipped to the image: line 1", 0),
    ],
)
def test_yolo_source_drops_or_clips_bad_boxes_with_a_note(
    line: str, kept: list[list[float]], note: str, dropped: int, tmp_path: Path
) -> None:
    truth = truth_of(tmp_path, line)
    assert truth.values["detection"]["boxes"].tolist() == kept
    assert (truth.notes, truth.annotations, truth.dropped) == ([note], 1, dropped)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 0.5 0.5 0.5", "line 1: '0 0.5 0.5 0.5' has 3 numbers behind the class: 4 are a box"),
        ("0 0.5 0.5 0.5 0.5 0.9", "line 1: .* has 5 numbers behind the class"),
        ("0 0.5 0.5 0.5 0.5\ncar 0.5 0.5 0.5 0.5", "line 2: 'car 0.5 0.5 0.5 0.5' is not the number of a class"),
        ("0 0.5 nan 0.5 0.5", "line 1: '0 0.5 nan 0.5 0.5' is not the number"),
        ("-1 0.5 0.5 0.5 0.5", "line 1: .* is not the number of a class"),
        ("0.5 0.5 0.5 0.5 0.5", "line 1: .* is not the number of a class"),
        ("2 0.5 0.5 0.5 0.5", "line 1: the class 2 is none of 0 to 3"),
        ("0 100 50 20 20", "line 1: '0 100 50 20 20' is not relative to the image, from 0 to 1"),
    ],
)
def test_yolo_source_refuses_lines_without_meaning(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^a.txt: {reason}"):
        truth_of(tmp_path, text)


def test_yolo_source_tells_empty_texts_from_missing_ones(tmp_path: Path) -> None:
    describe(tmp_path)
    write_pair(tmp_path / "images/a.jpg", tmp_path / "labels/a.txt", "\n")
    write_pair(tmp_path / "images/b.jpg", tmp_path / "labels/b.txt")
    (tmp_path / "labels/b.txt").unlink()
    for no_file in ("no_objects", "unknown"):
        empty, missing = (record.truth(SIZE) for record in records_of(tmp_path, no_file=no_file, hold_out=0).values())
        assert (len(empty.values["detection"]["boxes"]), empty.notes) == (0, [])
        assert ("detection" in missing.values) == (no_file == "no_objects")
        assert len(missing.notes) == 1


def test_yolo_source_lists_texts_without_an_image(tmp_path: Path) -> None:
    describe(tmp_path)
    write_pair(tmp_path / "images/a.jpg", tmp_path / "labels/a.txt")
    (tmp_path / "labels/gone.txt").write_text(TEXT)
    (tmp_path / "README.txt").write_text("Things, labelled by hand.")
    source = open_source(tmp_path)
    assert len(list(source.records())) == 1
    assert source.problems == [("labels/gone.txt", "a file of labels without an image")]
    assert source.skipped == {".txt": 1}


def test_yolo_source_refuses_two_images_of_one_text(tmp_path: Path) -> None:
    describe(tmp_path)
    write_pair(tmp_path / "images/a.jpg", tmp_path / "labels/a.txt")
    Image.new("RGB", SIZE).save(tmp_path / "images/a.png")
    with pytest.raises(DataError, match=r"a.jpg and .*a.png are images of the same labels, .*labels/a.txt: keep one"):
        list(open_source(tmp_path).records())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"names": []}, r"data.yaml: names: \[\] is not a list of classes"),
        ({"names": "car"}, "names: 'car' is not a list"),
        ({"names": [True]}, "names: True is no text: put quotes around the name of class 0"),
        ({"names": [["a"]]}, "is no text"),
        ({"names": {"car": 0}}, "names: 'car' is not the number of a class"),
        ({"names": {-1: "car"}}, "names: -1 is not the number"),
        ({"names": ["car"], "nc": 2}, "`names` has 1 classes, but `nc` is 2"),
        ({"train": "images/gone"}, "train: 'images/gone' leads to no folder or list of images in "),
        ({"val": ["simplecache::file:///etc", "../../../etc/passwd"]}, "val: .* leads to no folder"),
    ],
)
def test_yolo_source_names_what_is_wrong_in_data_yaml(content: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_pair(tmp_path / "images/a.jpg", tmp_path / "labels/a.txt")
    describe(tmp_path, **content)
    with pytest.raises(ConfigError, match=reason):
        open_source(tmp_path)


def test_yolo_source_asks_for_names(tmp_path: Path) -> None:
    write_pair(tmp_path / "images/a.jpg", tmp_path / "labels/a.txt", "0 0.5 0.5 0.5 0.5")
    with pytest.raises(ConfigError, match=r"has no data.yaml with `names` and no classes.txt; state the names"):
        open_source(tmp_path)
    write_pair(tmp_path / "images/b.jpg", tmp_path / "labels/b.txt", "")
    assert open_source(tmp_path, classes=("car",)).spaces()["detection"].classes == ("car",)
    found = detect_source(tmp_path)
    assert found.entry["kind"] == "folder"
    assert "not read: 2 .txt. If these are YOLO's labels" in found.describe()
