"""The voc source: pixels that count from 1, lists of splits, difficult objects, and XML that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ingest.init import detect_source
from pipeline.errors import DataError
from pipeline.sources import TrueLabels, voc

SIZE = (200, 100)


def box(name: str = "dog", edges: Any = (11, 21, 50, 60), more: str = "") -> str:
    corners = "".join(
        f"<{key}>{edge}</{key}>" for key, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def xml(*objects: str, size: tuple[int, int] = SIZE) -> str:
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>whatever.jpg</filename>{sides}{''.join(objects)}</annotation>"


def write_pair(root: Path, stem: str, text: str, folders: tuple[str, str] = ("JPEGImages", "Annotations")) -> None:
    image, label = root / folders[0] / f"{stem}.jpg", root / folders[1] / f"{stem}.xml"
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE).save(image)
    label.write_text(text)


def open_source(root: Path, **options: Any) -> voc.Source:
    return voc.Source(voc.Config(path=str(root), **options))


def truth_of(root: Path, text: str, **options: Any) -> TrueLabels:
    write_pair(root, "a", text)
    (record,) = open_source(root, **options).records()
    return record.truth(SIZE)


@pytest.mark.parametrize(
    ("folders", "stem", "split"),
    [
        (("JPEGImages", "Annotations"), "a", "train"),
        (("images", "annotations"), "a", "train"),
        (("", ""), "a", "train"),
        (("", ""), "valid/a", "val"),
        (("train/images", "train/xmls"), "a", "train"),
        (("test/JPEGImages", "test/Annotations"), "a", "test"),
    ],
)
def test_voc_source_pairs_images_and_xml_in_every_layout(
    folders: tuple[str, str], stem: str, split: str, tmp_path: Path
) -> None:
    write_pair(tmp_path, stem, xml(box(), box("cat", (1, 1, 200, 100))), folders)
    (record,) = open_source(tmp_path, hold_out=0).records()
    assert (record.name, record.split) == (str(Path(folders[0]) / f"{stem}.jpg"), split)
    value = record.truth(SIZE).values["detection"]
    assert value["boxes"].tolist() == [[10, 20, 50, 60], [0, 0, 200, 100]]
    assert value["classes"].tolist() == [1, 0]
    found = detect_source(tmp_path)
    assert found.entry == {"kind": "voc", "path": str(tmp_path), "classes": ["cat", "dog"]}
    assert found.tasks == ("detection",)


def test_voc_source_reads_pixels_that_count_from_0(tmp_path: Path) -> None:
    value = truth_of(tmp_path, xml(box(edges=(10.5, "2e1", 50, 60))), first_pixel=0).values["detection"]
    assert value["boxes"].tolist() == [[10.5, 20, 50, 60]]


@pytest.mark.parametrize(
    ("given", "kept", "note", "dropped"),
    [
        (box(more="<difficult>1</difficult>"), [], "difficult object left out", 0),
        (box(more="<difficult>maybe</difficult>"), [], "object with difficult 'maybe' dropped", 1),
        (box(more="<difficult>0</difficult><part><bndbox/></part>"), [[10, 20, 50, 60]], None, 0),
        (box(edges=(0, 1, 50, 60)), [[0, 0, 50, 60]], "box clipped to the image", 0),
        (box(edges=(50, 1, 20, 60)), [], "empty box dropped", 1),
        (box(edges=("", 1, 20, 60)), [], "box without four numbers dropped", 1),
        (box(edges=("nan", 1, 20, 60)), [], "box without four numbers dropped", 1),
        (box(name=" "), [], "box without a class dropped", 1),
        ("<object><name>dog</name></object>", [], "box without four numbers dropped", 1),
        (box(edges=(300, 1, 320, 60)), [], "box outside the image dropped", 1),
    ],
)
def test_voc_source_drops_or_clips_objects_with_a_note(
    given: str, kept: list[Any], note: str | None, dropped: int, tmp_path: Path
) -> None:
    truth = truth_of(tmp_path, xml(given), classes=("dog",))
    assert truth.values["detection"]["boxes"].tolist() == kept
    assert truth.notes == ([f"{note}: object 1"] if note else [])
    assert (truth.annotations, truth.dropped) == (1, dropped)


def write_lists(root: Path, lists: dict[str, str]) -> None:
    (root / "ImageSets/Main").mkdir(parents=True)
    for name, text in lists.items():
        (root / "ImageSets/Main" / f"{name}.txt").write_text(text)


def test_voc_source_takes_splits_from_lists(tmp_path: Path) -> None:
    for stem in ("1", "2", "3", "4"):
        write_pair(tmp_path, stem, xml(box()))
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        Image.new("P", SIZE).save(tmp_path / f"SegmentationClass/{stem}.png")
    lists = {"train": "1\n", "val": "2  1\n\n", "trainval": "1\n2\n", "test": "3\ngone\n", "dog_train": "4 1\n"}
    write_lists(tmp_path, lists)
    source = open_source(tmp_path)
    splits = {record.name[11:]: record.split for record in source.records()}
    assert splits == {"1.jpg": "train", "2.jpg": "val", "3.jpg": "test"}
    assert source.problems == [("ImageSets/Main/test.txt", "lists 1 images that are not there, first 'gone'")]
    assert source.skipped[".jpg of no split that is stated"] == 1
    stamped = {name for name, *_ in source.file_stamps()}
    assert {"ImageSets/Main/val.txt", "Annotations/4.xml", "JPEGImages/4.jpg"} < stamped
    assert "SegmentationClass/1.png" not in stamped


def test_voc_source_holds_out_a_share_of_trainval_alone(tmp_path: Path) -> None:
    stems = [str(number) for number in range(40)]
    for stem in stems:
        write_pair(tmp_path, stem, xml(box()))
    write_lists(tmp_path, {"trainval": "\n".join(stems)})
    assert {record.split for record in open_source(tmp_path).records()} == {"train", "test"}


def test_voc_source_has_no_label_of_an_image_without_xml(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        write_pair(tmp_path, stem, xml(box()))
    (tmp_path / "Annotations/b.xml").rename(tmp_path / "Annotations/c.xml")
    source = open_source(tmp_path)
    _, without = source.records()
    assert without.truth(SIZE) == TrueLabels(notes=["no file of labels"])
    assert source.problems == [("Annotations/c.xml", "a file of labels without an image")]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
OUTSIDE = '<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotation/>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "can't be read as XML .it declares a document type, which is not read"),
        (OUTSIDE, "can't be read as XML .it declares a document type"),
        ("<annotation>", "can't be read as XML .no element found"),
        ("", "can't be read as XML"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "can't be read as XML"),
        ("<html></html>", "begins with <html>, where <annotation> is expected"),
        (xml(box(), size=(100, 200)), "it says 100x200, the upright image 200x100: swapped"),
        (xml(box(name="cow")), "label 'cow' is not among the 1 classes: dog"),
    ],
)
def test_voc_source_refuses_xml_and_names_the_file(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^Annotations/a.xml: {reason}"):
        truth_of(tmp_path, text, classes=("dog",))


def test_voc_source_refuses_xml_that_is_too_large(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", "")
    with open(tmp_path / "Annotations/a.xml", "wb") as file:
        file.truncate(voc.MOST_BYTES + 1)  # takes no space
    (record,) = open_source(tmp_path, classes=("dog",)).records()
    with pytest.raises(DataError, match=r"^Annotations/a.xml: has 16,777,217 bytes; 16,777,216 are read"):
        record.truth(SIZE)


def test_voc_source_refuses_classes_that_look_alike(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", xml(box("Dog"), box("dog")))
    with pytest.raises(DataError, match="the classes 'Dog' and 'dog' differ only by case"):
        open_source(tmp_path).spaces()
