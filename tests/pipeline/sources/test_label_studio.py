"""The label_studio source: percent, turned boxes, choices, several annotations, and the names of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest.init import detect_source
from pipeline.errors import ConfigError, DataError
from pipeline.sources import TrueLabels, label_studio

SIZE = (200, 100)


def mark(kind: str, value: dict[str, Any], labels: Any = ("dog",), **more: Any) -> dict[str, Any]:
    sides = {"original_width": SIZE[0], "original_height": SIZE[1], "image_rotation": 0}
    return {"id": "r1", "type": kind, "from_name": "label", "value": {**value, kind: list(labels)}, **sides, **more}


def box(x: Any = 10, y: Any = 20, width: Any = 30, height: Any = 40, **more: Any) -> dict[str, Any]:
    return {"x": x, "y": y, "width": width, "height": height, "rotation": 0, **more}


def choice(*names: str, control: str = "kind", region: str = "c1") -> dict[str, Any]:
    return {"id": region, "type": "choices", "from_name": control, "value": {"choices": list(names)}}


def task(*results: list[dict[str, Any]], image: str = "/data/upload/1/0123abcd-a.jpg", **more: Any) -> dict[str, Any]:
    made = [{"id": number, "result": result, "was_cancelled": False} for number, result in enumerate(results)]
    return {"id": 7, "annotations": made, "data": {"image": image}, "predictions": [{"result": []}], **more}


def write(root: Path, *tasks: dict[str, Any]) -> None:
    root.mkdir(exist_ok=True)
    (root / "project-1.json").write_text(json.dumps(tasks))


def write_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(root / name)


def open_source(root: Path, **options: Any) -> label_studio.Source:
    return label_studio.Source(label_studio.Config(path=str(root), **options))


def truth_of(root: Path, *results: list[dict[str, Any]]) -> TrueLabels:
    write(root, task(*results))
    write_images(root, "a.jpg")
    (record,) = open_source(root, classes=("cat", "dog")).records()
    return record.truth(SIZE)


def test_label_studio_source_reads_rectangles_in_percent(tmp_path: Path) -> None:
    truth = truth_of(tmp_path, [mark("rectanglelabels", box()), mark("rectanglelabels", box(0, 0, 100, 100), ["cat"])])
    value = truth.values["detection"]
    np.testing.assert_allclose(value["boxes"], [[20, 20, 80, 60], [0, 0, 200, 100]], rtol=1e-6)
    assert value["classes"].tolist() == [1, 0]
    assert (truth.notes, truth.annotations, truth.dropped) == ([], 2, 0)
    found = detect_source(tmp_path)
    assert found.entry == {"kind": "label_studio", "path": str(tmp_path), "annotations": ["project-1.json"]}
    assert found.tasks == ("detection",)
    assert found.source.spaces()["detection"].classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        (mark("polygonlabels", {"points": [[10, 20], [40, 30], [20, 60]]}), [20, 20, 80, 60]),
        (mark("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20}), [80, 30, 120, 70]),
        # a quarter turn about the upper left corner (100, 50) of 20 x 10 pixels
        (mark("rectanglelabels", box(50, 50, 10, 10, rotation=90)), [90, 50, 100, 70]),
        (mark("rectanglelabels", {**box(10, 20, 30, 40), "x": "10"}), [20, 20, 80, 60]),
    ],
)
def test_label_studio_source_takes_the_box_around_a_shape(
    marked: dict[str, Any], expected: list[float], tmp_path: Path
) -> None:
    truth = truth_of(tmp_path, [marked])
    np.testing.assert_allclose(truth.values["detection"]["boxes"], [expected], rtol=1e-6)
    assert truth.notes == []


def test_label_studio_source_joins_rectangles_and_labels_of_one_id(tmp_path: Path) -> None:
    apart = [
        {"id": "q", "type": "rectangle", "value": box()},
        {"id": "q", "type": "labels", "value": {"labels": ["cat"]}},
    ]
    truth = truth_of(tmp_path, apart)
    assert truth.values["detection"]["classes"].tolist() == [0]
    assert truth.notes == []


@pytest.mark.parametrize(
    ("marked", "note", "dropped"),
    [
        (mark("keypointlabels", {"x": 1, "y": 1}), "keypointlabels, which is no box, dropped: region 1", 1),
        (mark("brushlabels", {"rle": [1]}), "brushlabels, which is no box, dropped: region 1", 1),
        (mark("rectanglelabels", box(), []), "box without a class dropped: region 1", 1),
        (mark("rectanglelabels", box(x=None)), "box without four numbers dropped: region 1", 1),
        (mark("rectanglelabels", box(width=0)), "empty box dropped: region 1", 1),
        (mark("rectanglelabels", box(), image_rotation=90), "box in an image that was turned dropped: region 1", 1),
        ({"id": "t", "type": "textarea", "value": {"text": ["hm"]}}, "'textarea' left out", 0),
    ],
)
def test_label_studio_source_drops_other_marks_with_a_note(
    marked: dict[str, Any], note: str, dropped: int, tmp_path: Path
) -> None:
    truth = truth_of(tmp_path, [marked])
    assert (truth.notes, truth.dropped) == ([note], dropped)
    assert len(truth.values["detection"]["boxes"]) == 0


def test_label_studio_source_uses_one_annotation_of_each_image(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg")
    one, two = ([mark("rectanglelabels", box(), [name])] for name in ("cat", "dog"))
    given = task(one, two)
    cases: list[tuple[list[dict[str, Any]], list[int]]] = [
        ([{"updated_at": "2024-01-02"}, {"updated_at": "2024-01-01"}], [0]),
        ([{"updated_at": "2024-01-01"}, {"updated_at": "2024-01-02"}], [1]),
        ([{"ground_truth": True}, {"updated_at": "2024-01-02"}], [0]),
        ([{}, {"was_cancelled": True}], [0]),
    ]
    for changes, expected in cases:
        made = [{**each, **change} for each, change in zip(given["annotations"], changes, strict=True)]
        write(tmp_path, {**given, "annotations": made})
        (record,) = open_source(tmp_path, classes=("cat", "dog")).records()
        truth = record.truth(SIZE)
        assert truth.values["detection"]["classes"].tolist() == expected
        assert truth.notes == ([] if "was_cancelled" in changes[1] else ["one of 2 annotations is used"])


def test_label_studio_source_tells_empty_annotations_from_none(tmp_path: Path) -> None:
    boxed = task([mark("rectanglelabels", box())], image="c.jpg")
    write(tmp_path, task([], image="a.jpg"), task(image="b.jpg"), boxed)
    write_images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    empty, without, _ = (record.truth(SIZE) for record in open_source(tmp_path).records())
    assert len(empty.values["detection"]["boxes"]) == 0
    assert without == TrueLabels(notes=["not labelled"])


@pytest.mark.parametrize(("several", "task_name"), [(False, "classification"), (True, "multilabel")])
def test_label_studio_source_reads_choices_as_classes_of_images(several: bool, task_name: str, tmp_path: Path) -> None:
    last = choice("night", "day") if several else choice("night")
    write(tmp_path, task([choice("day")], image="a.jpg"), task([], image="b.jpg"), task([last], image="c.jpg"))
    write_images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    found = detect_source(tmp_path)
    assert found.tasks == (task_name,)
    assert found.source.spaces()[task_name].classes == ("day", "night")
    first, none, third = (record.truth(SIZE) for record in found.source.records())
    assert first.values[task_name]["probs"].tolist() == [1, 0]
    assert none == TrueLabels(notes=["nothing chosen"])
    assert third.values[task_name]["probs"].tolist() == [float(several), 1]


def test_label_studio_source_asks_which_choices_are_meant(tmp_path: Path) -> None:
    boxed = mark("rectanglelabels", box())
    write(
        tmp_path, task([choice("day"), choice("wet", control="road"), boxed, choice("x", region="r1")], image="a.jpg")
    )
    write_images(tmp_path, "a.jpg")
    with pytest.raises(ConfigError, match="images have choices of kind, road: name one as `choices`"):
        open_source(tmp_path).spaces()
    with pytest.raises(ConfigError, match=r"choices: the control 'rod' is unknown. Did you mean 'road'"):
        open_source(tmp_path, choices="rod").spaces()
    source = open_source(tmp_path, choices="road")
    assert {name: space.classes for name, space in source.spaces().items()} == {
        "detection": ("dog",),
        "classification": ("wet",),
    }
    (record,) = source.records()
    assert record.truth(SIZE).notes == ["choices of regions left out"]


@pytest.mark.parametrize(
    ("stated", "file"),
    [
        ("/data/upload/3/0123abcd-a.jpg", "images/0123abcd-a.jpg"),
        ("/data/upload/3/0123abcd-a.jpg", "photos/a.jpg"),
        ("/data/local-files/?d=photos/day%201/a.jpg", "photos/day 1/a.jpg"),
        ("https://host/bucket/a%20b.jpg?token=1", "a b.jpg"),
        ("s3://bucket/deep/a.jpg", "deep/a.jpg"),
        ("C:\\photos\\a.jpg", "a.jpg"),
    ],
)
def test_label_studio_source_finds_images_by_their_names(stated: str, file: str, tmp_path: Path) -> None:
    write(tmp_path, task([mark("rectanglelabels", box())], image=stated))
    write_images(tmp_path, file, "other/b.jpg")
    source = open_source(tmp_path)
    (record,) = source.records()
    assert (record.name, source.problems) == (file, [])
    assert record.read() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "can't be read as JSON"),
        ('{"a": 1}', "not Label Studio's JSON: it is no list of tasks"),
        ("[1]", "it is no list of tasks"),
        (
            '[{"id": 5, "data": {"text": "hello"}, "annotations": []}]',
            "task 5 names no image in `data`: .'text': 'hello'",
        ),
    ],
)
def test_label_studio_source_refuses_other_json_and_names_the_file(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=f"^{tmp_path}/a.json: .*{reason}|^{tmp_path}/a.json: {reason}"):
        open_source(tmp_path, annotations=("a.json",)).spaces()


def test_label_studio_source_checks_the_size(tmp_path: Path) -> None:
    write(tmp_path, task([mark("rectanglelabels", box())]))
    write_images(tmp_path, "a.jpg")
    (record,) = open_source(tmp_path).records()
    with pytest.raises(DataError, match="the annotations say 200x100, the upright image 100x200: swapped"):
        record.truth((100, 200))
