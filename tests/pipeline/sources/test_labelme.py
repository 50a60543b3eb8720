"""The labelme source: the boxes around shapes, JSON beside or apart from images, and JSON that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ingest.init import detect_source
from pipeline.errors import DataError
from pipeline.sources import TrueLabels, labelme

SIZE = (200, 100)


def shape(points: Any, kind: Any = "polygon", label: Any = "dog") -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}}


def content(*shapes: dict[str, Any], size: tuple[Any, Any] = SIZE) -> str:
    about = {"version": "5.0.1", "flags": {}, "imagePath": "..\\x.jpg", "imageData": "aGVsbG8="}
    return json.dumps({**about, "shapes": list(shapes), "imageWidth": size[0], "imageHeight": size[1]})


def write_pair(root: Path, text: str, image: str = "a.jpg", label: str = "a.json") -> None:
    for path in (root / image, root / label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE).save(root / image)
    (root / label).write_text(text)


def truth_of(root: Path, text: str) -> TrueLabels:
    write_pair(root, text)
    (record,) = labelme.Source(labelme.Config(path=str(root), classes=("cat", "dog"))).records()
    return record.truth(SIZE)


@pytest.mark.parametrize(
    ("image", "label", "split"),
    [
        ("a.jpg", "a.json", "train"),
        ("images/a.jpg", "labels/a.json", "train"),
        ("img/val/a.jpg", "json/val/a.json", "val"),
        ("test/a.jpg", "test/a.json", "test"),
    ],
)
def test_labelme_source_pairs_images_and_json_in_every_layout(
    image: str, label: str, split: str, tmp_path: Path
) -> None:
    write_pair(
        tmp_path, content(shape([[30, 5.5], [10, 20]], "rectangle"), shape([[1, 2]] * 3, label="cat")), image, label
    )
    source = labelme.Source(labelme.Config(path=str(tmp_path), hold_out=0))
    (record,) = source.records()
    assert (record.name, record.split) == (image, split)
    value = record.truth(SIZE).values["detection"]
    assert value["boxes"].tolist() == [[10, 5.5, 30, 20]]
    assert value["classes"].tolist() == [1]
    found = detect_source(tmp_path)
    assert found.entry == {"kind": "labelme", "path": str(tmp_path), "classes": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("points", "kind", "box"),
    [
        ([[10, 20], [30, 25], [20, 60]], "polygon", [10, 20, 30, 60]),
        ([[10, 20], [30, 25], [20, 60]], None, [10, 20, 30, 60]),
        ([[30, 60], [10, 20]], "rectangle", [10, 20, 30, 60]),
        ([[10, 20], [30, 20], [30, 60], [10, 60]], "rectangle", [10, 20, 30, 60]),
        ([[50, 50], [53, 54]], "circle", [45, 45, 55, 55]),
        ([[10, 20], [30, 60]], "mask", [10, 20, 30, 60]),
        ([["10", 20], [30, "6e1"]], "rectangle", [10, 20, 30, 60]),
    ],
)
def test_labelme_source_takes_the_box_around_a_shape(points: Any, kind: Any, box: list[float], tmp_path: Path) -> None:
    truth = truth_of(tmp_path, content(shape(points, kind)))
    assert truth.values["detection"]["boxes"].tolist() == [box]
    assert truth.notes == []


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (shape([[1, 2]], "point"), "'point', which has no area, dropped"),
        (shape([[1, 2], [3, 4]], "line"), "'line', which has no area, dropped"),
        (shape([[1, 2], [3, 4]], ["polygon"]), "['polygon'], which has no a"),
        (shape([[1, 2], [3, 4]]), "box without four numbers dropped"),
        (shape("nothing"), "box without four numbers dropped"),
        (shape([[1, 2], [3, None], [5, 6]]), "box without four numbers dropped"),
        (shape([[1, 2], [3, 4], [5, float("inf")]]), "box without four numbers dropped"),
        (shape([[1, 2], [1, 4]], "rectangle"), "empty box dropped"),
        (shape([[300, 2], [310, 4]], "rectangle"), "box outside the image dropped"),
        (shape([[1, 2], [3, 4]], "rectangle", label=" "), "box without a class dropped"),
        (shape([[1, 2], [3, 4]], "rectangle", label=7), "box without a class dropped"),
    ],
)
def test_labelme_source_drops_other_shapes_with_a_note(given: dict[str, Any], note: str, tmp_path: Path) -> None:
    truth = truth_of(tmp_path, content(given))
    assert len(truth.values["detection"]["boxes"]) == 0
    assert (truth.annotations, truth.dropped, len(truth.notes)) == (1, 1, 1)
    assert truth.notes[0].startswith(note)
    assert truth.notes[0].endswith(": shape 1")


def test_labelme_source_joins_the_parts_of_an_object(tmp_path: Path) -> None:
    parts = [
        {**shape([[x, 10], [x + 5, 20]], "rectangle", label), "group_id": group}
        for x, label, group in ((10, "dog", 1), (30, "dog", 1), (50, "cat", 1), (70, "dog", 2), (90, "dog", None))
    ]
    value = truth_of(tmp_path, content(*parts)).values["detection"]
    found = sorted(zip(value["boxes"][:, [0, 2]].tolist(), value["classes"].tolist(), strict=True))
    assert found == [([10, 35], 1), ([50, 55], 0), ([70, 75], 1), ([90, 95], 1)]


def test_labelme_source_leaves_out_what_is_to_be_ignored(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, content(shape([[1, 1], [9, 9]], "rectangle", "__ignore__")))
    assert truth.notes == ["shape of the class __ignore__ left out: shape 1"]
    assert (truth.annotations, truth.dropped) == (1, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not Labelme's JSON: EOF"),
        ("[]", "not Labelme's JSON: "),
        ('{"shapes": 1}', r"not Labelme's JSON: shapes: .* \(value 1\)"),
        ('{"shapes": [1]}', r"not Labelme's JSON: shapes.0: .* \(value 1\)"),
        ("[" * 10_000, "not Labelme's JSON: "),
        (content(shape([[1, 1], [9, 9]], "rectangle", "cow")), "label 'cow' is not among the 2 classes: cat, dog"),
        (content(size=(100, 200)), "it says 100x200, the upright image 200x100: swapped"),
    ],
)
def test_labelme_source_refuses_json_and_names_the_file(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^a.json: {reason}"):
        truth_of(tmp_path, text)


def test_labelme_source_has_no_label_of_an_image_without_json(tmp_path: Path) -> None:
    write_pair(tmp_path, content(shape([[1, 1], [9, 9]], "rectangle")))
    write_pair(tmp_path, content(shape([[1, 1], [9, 9]], "rectangle")), "b.jpg", "c.json")
    (tmp_path / "about.json").write_text('{"by": "me"}')
    source = labelme.Source(labelme.Config(path=str(tmp_path)))
    _, without = source.records()
    assert without.truth(SIZE) == TrueLabels(notes=["no file of labels"])
    assert source.problems == [("c.json", "a file of labels without an image")]
    assert source.skipped == {".json": 1}
