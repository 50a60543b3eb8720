"""The cvat source: shapes as boxes, names as the tool has them, subsets as splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest.init import detect_source
from pipeline.errors import ConfigError, DataError
from pipeline.sources import TrueLabels, cvat

SIZE = (200, 100)
BOX = '<box label="dog" occluded="0" xtl="10.5" ytl="20" xbr="50" ybr="60.25" z_order="0"/>'
LABELS = ("dog", "cat", "unused")


def image(name: str = "a.jpg", shapes: str = "", more: str = 'width="200" height="100"') -> str:
    return f'<image id="3" name="{name}" {more}>{shapes}</image>'


def write(root: Path, *images: str, labels: tuple[str, ...] = LABELS, file: str = "annotations.xml") -> None:
    names = "".join(f"<label><name>{name}</name><attributes/></label>" for name in labels)
    meta = f"<meta><task><id>1</id><labels>{names}</labels></task></meta>"
    root.mkdir(parents=True, exist_ok=True)
    text = f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"
    (root / file).write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{text}')


def write_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(root / name)


def open_source(root: Path, **options: Any) -> cvat.Source:
    return cvat.Source(cvat.Config(path=str(root), **options))


def truth_of(root: Path, shapes: str) -> TrueLabels:
    write(root, image(shapes=shapes))
    write_images(root, "images/a.jpg")
    (record,) = open_source(root).records()
    return record.truth(SIZE)


def test_cvat_source_reads_boxes_and_the_listed_classes(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, BOX + BOX.replace("dog", "cat"))
    value = truth.values["detection"]
    assert value["boxes"].tolist() == [[10.5, 20, 50, 60.25]] * 2
    assert value["classes"].tolist() == [0, 1]
    assert (truth.notes, truth.annotations) == ([], 2)
    found = detect_source(tmp_path)
    assert found.entry == {"kind": "cvat", "path": str(tmp_path), "annotations": ["annotations.xml"]}
    assert found.source.spaces()["detection"].classes == LABELS
    assert found.describe() == f"{tmp_path}: cvat (annotations: [annotations.xml]), with labels for detection"


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ('<polygon label="dog" points="10,20;30,25.5;20,60"/>', [10, 20, 30, 60]),
        ('<ellipse label="dog" cx="50" cy="40" rx="20" ry="10"/>', [30, 30, 70, 50]),
        ('<mask label="dog" rle="1, 2" left="10" top="20" width="5" height="6"/>', [10, 20, 15, 26]),
        ('<box label="dog" xtl="40" ytl="45" xbr="60" ybr="55" rotation="90.0"/>', [45, 40, 55, 60]),
        (
            '<box label="dog" xtl="40" ytl="40" xbr="60" ybr="60" rotation="45"/>',
            [35.857864, 35.857864, 64.142136, 64.142136],
        ),
    ],
)
def test_cvat_source_takes_the_box_around_a_shape(shape: str, box: list[float], tmp_path: Path) -> None:
    truth = truth_of(tmp_path, shape)
    np.testing.assert_allclose(truth.values["detection"]["boxes"], [box], rtol=1e-6)
    assert truth.notes == []


@pytest.mark.parametrize(
    ("shape", "note", "dropped"),
    [
        ('<points label="dog" points="1,2"/>', "points, which is no box, dropped: shape 1", 1),
        ('<polyline label="dog" points="1,2;3,4"/>', "polyline, which is no box, dropped: shape 1", 1),
        ('<box label="dog" xtl="x" ytl="1" xbr="9" ybr="9"/>', "box without four numbers dropped: shape 1", 1),
        ('<box label="dog" xtl="1" ytl="1" xbr="9"/>', "box without four numbers dropped: shape 1", 1),
        (
            '<box label="dog" xtl="1" ytl="1" xbr="9" ybr="9" rotation="up"/>',
            "box without four numbers dropped: shape 1",
            1,
        ),
        ('<box xtl="1" ytl="1" xbr="9" ybr="9"/>', "box without a class dropped: shape 1", 1),
        ('<polygon label="dog" points="1,2;3,4"/>', "box without four numbers dropped: shape 1", 1),
        ('<tag label="dog" source="manual"></tag>', "tags of the image left out", 0),
    ],
)
def test_cvat_source_drops_other_shapes_with_a_note(shape: str, note: str, dropped: int, tmp_path: Path) -> None:
    truth = truth_of(tmp_path, shape)
    assert len(truth.values["detection"]["boxes"]) == 0
    assert (truth.notes, truth.dropped) == ([note], dropped)


def test_cvat_source_finds_images_by_the_ends_of_their_names(tmp_path: Path) -> None:
    names = ["street/1.jpg", "park/1.jpg", "deep/er/2.jpg", "3.jpg", "gone/4.jpg", "../../outside/5.jpg"]
    write(tmp_path / "set", *(image(name, BOX) for name in names))
    write_images(tmp_path / "set", "images/street/1.jpg", "images/park/1.jpg", "2.jpg", "x/3.jpg", "x/6.jpg")
    write_images(tmp_path, "outside/5.jpg")
    source = open_source(tmp_path / "set", hold_out=0)
    found = [record.name for record in source.records()]
    assert found == ["2.jpg", "images/park/1.jpg", "images/street/1.jpg", "x/3.jpg"]
    assert [reason.partition(" in ")[0] for _, reason in source.problems] == [
        "the name 'gone/4.jpg' is of no image",
        "the name '../../outside/5.jpg' is of no image",
    ]
    assert source.stray_annotations == 2


def test_cvat_source_takes_no_image_of_another_folder_for_one_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, image("street/1.jpg"), image("park/1.jpg"))
    write_images(tmp_path, "images/park/1.jpg")
    source = open_source(tmp_path)
    assert [record.name for record in source.records()] == ["images/park/1.jpg"]
    assert len(source.problems) == 1


def test_cvat_source_refuses_to_guess_between_images_of_one_name(tmp_path: Path) -> None:
    write(tmp_path, image("1.jpg"), image("2.jpg"))
    write_images(tmp_path, "a/1.jpg", "b/1.jpg", "2.jpg")
    source = open_source(tmp_path)
    assert len(list(source.records())) == 1
    assert source.problems[0][1].startswith("the name '1.jpg' may be ")


def test_cvat_source_takes_splits_from_subsets(tmp_path: Path) -> None:
    subsets = {"1.jpg": "Train", "2.jpg": "Validation", "3.jpg": "Test", "4.jpg": "default"}
    sides = 'width="200" height="100"'
    write(tmp_path, *(image(name, more=f'subset="{subset}" {sides}') for name, subset in subsets.items()))
    write_images(tmp_path, *(f"images/{subset}/{name}" for name, subset in subsets.items()))
    source = open_source(tmp_path)
    assert {record.name[-5:]: record.split for record in source.records()} == {
        "1.jpg": "train",
        "2.jpg": "val",
        "3.jpg": "test",
    }
    assert source.problems == [("images/default/4.jpg", "no split is stated, as of others")]


def test_cvat_source_joins_several_files_and_lists_doubled_images(tmp_path: Path) -> None:
    write(tmp_path, image("1.jpg", BOX), labels=("dog",), file="one.xml")
    write(tmp_path, image("2.jpg"), image("1.jpg", BOX), labels=("cat",), file="two.xml")
    write_images(tmp_path, "1.jpg", "2.jpg")
    source = open_source(tmp_path, hold_out=0)
    assert len(list(source.records())) == 2
    assert source.classes == ("dog", "cat")
    assert source.problems == [("1.jpg", "listed twice, the second time by two.xml image '3'")]
    assert source.stray_annotations == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotations><version/><track/></annotations>", "is CVAT for video: export the task as CVAT for images 1.1"),
        ("<annotations><version/>", "can't be read as XML"),
        ("<annotations><version/><image/></annotations>", "image None has no name"),
        ("<!DOCTYPE a><annotations><version/></annotations>", "it declares a document type"),
        ("<html/>", "begins with <html>"),
    ],
)
def test_cvat_source_refuses_other_xml_and_names_the_file(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(DataError, match=f"^{tmp_path}/a.xml: .*{reason}"):
        open_source(tmp_path, annotations=("a.xml",)).spaces()


def test_cvat_source_checks_size_and_asks_for_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"path: no .xml file of this kind in .*state the files as `annotations`"):
        open_source(tmp_path)
    write(tmp_path, image())
    write_images(tmp_path, "a.jpg")
    (record,) = open_source(tmp_path).records()
    with pytest.raises(DataError, match="the annotations say 200x100, the upright image 100x200: swapped"):
        record.truth((100, 200))
