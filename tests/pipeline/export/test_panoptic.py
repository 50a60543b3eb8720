"""The panoptic form: no pixel twice, objects before classes, the surest object in front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import tasks
from pipeline.errors import ConfigError
from pipeline.export import ExportSample, write_export
from pipeline.stores.labels import IGNORE, LabelOrigin, LabelSpace, Value
from pipeline.stores.rle import decode_mask
from tests.pipeline.export.test_masks_of_objects import SIZE, SPACE, value

STREET = LabelSpace("segmentation", ("road", "cup", "sky"))
HEADS = {"things": SPACE, "street": STREET}
ORIGINS = {"things": LabelOrigin("pseudo", "things"), "street": LabelOrigin("true", "set")}


def stuff() -> Value:
    """Return road on the left, cups in the middle, sky on the right, and an unknown row at the bottom, at half size."""
    classes = np.zeros((16, 24), np.uint16)
    classes[:, 10:15], classes[:, 15:], classes[-1] = 1, 2, IGNORE
    return {"classes": classes, "confidence": np.ones(classes.shape, np.float32)}


def export(out: Path, values: dict[str, Value], heads: dict[str, LabelSpace] | None = None) -> dict[str, Any]:
    sample = ExportSample("0" * 16, b"image", "jpg", SIZE, "a.jpg", values, ORIGINS, name="set/a.jpg")
    return write_export(
        "panoptic", out, {head: tasks.label(space) for head, space in (heads or HEADS).items()}, [sample], {}
    )


def read(out: Path) -> tuple[NDArray[np.int64], list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """Return the picture of ids, its segments, and the categories by id."""
    content = json.loads((out / "panoptic_train.json").read_text())
    [annotation] = content["annotations"]
    assert annotation["image_id"] == content["images"][0]["id"]
    colors = np.asarray(Image.open(out / "panoptic_train" / annotation["file_name"])).astype(np.int64)
    ids: NDArray[np.int64] = colors @ np.array([1, 256, 65_536])
    return ids, annotation["segments_info"], {each["id"]: each for each in content["categories"]}


def test_panoptic_writer_merges_objects_and_classes(tmp_path: Path) -> None:
    summary = export(tmp_path / "out", {"things": value(), "street": stuff()})
    ids, segments, categories = read(tmp_path / "out")
    assert [(each["name"], each["isthing"]) for each in categories.values()] == [
        *(("cup", 1), ("plate", 1), ("road", 0), ("sky", 0))
    ]
    plate, cup = (decode_mask(mask, SIZE) for mask in value()["masks"])
    classes = stuff()["classes"].repeat(2, axis=0).repeat(2, axis=1)
    rest = ~(plate | cup)
    expected = {"plate": plate, "cup": cup & ~plate, "road": rest & (classes == 0), "sky": rest & (classes == 2)}
    found = {categories[each["category_id"]]["name"]: ids == each["id"] for each in segments}
    assert found.keys() == expected.keys()
    for name, pixels in found.items():
        np.testing.assert_array_equal(pixels, expected[name], err_msg=name)
    assert ((ids == 0) == ~np.any([*expected.values()], axis=0)).all(), "a class of objects without one is unknown"
    assert [each["area"] for each in segments] == [int((ids == each["id"]).sum()) for each in segments]
    assert segments[0]["bbox"] == [5, 3, 25, 17]
    assert (segments[0]["score"], segments[0]["origin"], segments[-1]["origin_name"]) == (
        pytest.approx(0.9),
        "pseudo",
        "set",
    )
    assert {head: about["written"]["segments"] for head, about in summary["heads"].items()} == {
        "things": 2,
        "street": 2,
    }
    assert (tmp_path / "out" / "images" / "train" / "set" / "a.jpg").read_bytes() == b"image"


def test_panoptic_writer_counts_objects_behind_others(tmp_path: Path) -> None:
    one = value()
    both = {**one, "masks": one["masks"][[0, 0]]}
    summary = export(tmp_path / "out", {"things": both}, {"things": SPACE})
    _, segments, _ = read(tmp_path / "out")
    assert [each["score"] for each in segments] == [pytest.approx(0.9)]
    assert summary["heads"]["things"]["written"]["objects behind others, left out"] == 1


def test_panoptic_writer_takes_what_an_image_has(tmp_path: Path) -> None:
    export(tmp_path / "out", {"street": stuff()})
    ids, segments, categories = read(tmp_path / "out")
    assert {categories[each["category_id"]]["name"] for each in segments} == {"road", "sky"}
    assert (ids[:30, 20:30] == 0).all()


def test_panoptic_writer_refuses_two_heads_of_a_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'things' and 'others' are both of masks: name one of each with --head"):
        export(tmp_path / "out", {"things": value()}, {"things": SPACE, "others": SPACE})
    assert not (tmp_path / "out").exists()
