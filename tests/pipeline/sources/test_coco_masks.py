"""The coco source's masks: the pixels that pycocotools reads, in every form; and what is no mask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as pycoco
from pycocotools.coco import COCO

from pipeline.stores.rle import decode_mask, encode_mask
from tests.pipeline.sources.test_coco import SIZE, box, open_source, single_record, write

SQUARE = [10, 5, 40, 5, 40, 25.5, 10, 25.5]
WIDE = [10, 5, 30, 20.5]
ALL = [0, 0, *SIZE]


def ellipse() -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return ((columns - 25) / 15) ** 2 + ((rows - 15) / 10) ** 2 <= 1


def listed_runs(mask: NDArray[np.bool_]) -> list[int]:
    columns = np.concatenate([[0], mask.T.ravel(), [0]]).astype(int)
    return np.diff([0, *np.flatnonzero(np.diff(columns)), mask.size]).tolist()


def compressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {"size": [SIZE[1], SIZE[0]], "counts": encode_mask(mask).decode("ascii")}


def test_coco_source_reads_masks_as_pycocotools_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given: list[Any] = [(rng.random(2 * count) * 60 - 5).round(2).tolist() for count in rng.integers(3, 12, 30)]
    segmentations: list[Any] = [[each] for each in given[:20]] + [given[20:23], given[23:25]]
    segmentations += [compressed(ellipse()), {"size": [50, 100], "counts": listed_runs(ellipse())}]
    boxes = [box(ALL, id=number, segmentation=each) for number, each in enumerate(segmentations, start=1)]
    write(tmp_path, boxes)
    source = open_source(tmp_path, masks=True)
    assert set(source.spaces()) == {"detection", "masks"}
    truth = single_record(source).truth(SIZE)
    known = COCO(tmp_path / "instances_train.json")
    expected = [known.annToMask(known.anns[number]).astype(bool) for number in range(1, len(boxes) + 1)]
    found = [decode_mask(mask, SIZE) for mask in truth.values["masks"]["masks"]]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not truth.notes
    for name, array in truth.values["detection"].items():
        np.testing.assert_array_equal(truth.values["masks"][name], array)


def test_coco_source_gives_masks_only_if_asked_for(tmp_path: Path) -> None:
    write(tmp_path, [box(WIDE, segmentation=[SQUARE])])
    assert set(open_source(tmp_path).spaces()) == set(single_record(open_source(tmp_path)).truth(SIZE).values)
    assert "masks" not in open_source(tmp_path).spaces()


def test_coco_source_stores_masks_in_their_canonical_form(tmp_path: Path) -> None:
    runs = [0, 0, 100, 50, 0, 50, 4800]
    other = pycoco.frPyObjects({"size": [50, 100], "counts": runs}, 50, 100)["counts"].decode()
    texts = [{"size": [50, 100], "counts": counts} for counts in (runs, other)]
    write(tmp_path, [box(ALL, segmentation=each) for each in texts])
    value = single_record(open_source(tmp_path, masks=True)).truth(SIZE).values["masks"]
    [text] = set(value["masks"].tolist())
    assert text == encode_mask(decode_mask(text, SIZE))
    assert decode_mask(text, SIZE).sum() == 100


@pytest.mark.parametrize(
    ("segmentation", "note"),
    [
        (None, "annotation without a segmentation dropped"),
        ([], "annotation without a segmentation dropped"),
        ([[]], "polygon of fewer than three points dropped"),
        ([[1, 2, 3, 4]], "polygon of fewer than three points dropped"),
        ([SQUARE, [1, 2, 3, 4, 5, 6, 7]], "polygon with an odd number of coordinates dropped"),
        ([["a", 1, 2, 3, 4, 5]], "polygon that is no list of numbers dropped: annotation 9"),
        ([[1, 2, 3, 10**400, 5, 6]], "polygon that is no list of numbers dropped: annotation 9"),
        ({"size": [50, 100], "counts": [10**400]}, "mask with counts that are no whole numbers dropped"),
        ([[-90, -40, 190, 90] * 2000], "polygon with an outline of .* pixels dropped"),
        ([[1, 2, 3, 1e400, 5, 6]], "polygon that is no list of numbers dropped: annotation 9"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "polygon far outside of the image dropped"),
        ([[300, 100, 290, 100, 290, 90]], "mask without a pixel dropped"),
        ("SQUARE", "segmentation that is neither polygons nor run lengths dropped: annotation 9"),
        (7, "segmentation that is neither polygons nor run lengths dropped: annotation 9"),
        ({"counts": [5000]}, "mask of another size than the image dropped: annotation 9, None"),
        (
            {"size": [100, 50], "counts": [0, 5000]},
            "of another size than the image dropped: annotation 9, .*100.*50.*height, width",
        ),
        ({"size": [50, 100], "counts": [10, 20]}, "runs of 30 pixels in an image of 100 x 50"),
        ({"size": [50, 100], "counts": [10, 5000]}, "runs of 5010 pixels in an image of 100 x 50"),
        ({"size": [50, 100], "counts": [10, -10, 5000]}, "a run of -10 pixels"),
        ({"size": [50, 100], "counts": [1e308, 1e308]}, r"a run of 1e\+308 pixels in an image of 100 x 50"),
        ({"size": [50, 100], "counts": [10**40]}, r"a run of 1e\+40 pixels in an image"),
        ({"size": [50, 100], "counts": [5001]}, "a run of 5001 pixels in an image"),
        (
            {"size": [50, 100], "counts": [0.5, 4999.5]},
            r"mask with counts that are no whole numbers dropped: annotation 9, \[0.5, 4999.5\]$",
        ),
        ({"size": [50, 100], "counts": ["x"]}, "mask with counts that are no whole numbers dropped"),
        ({"size": [50, 100], "counts": {"a": 1}}, "mask with counts that are no whole numbers dropped"),
        ({"size": [50, 100], "counts": []}, "runs of 0 pixels"),
        ({"size": [50, 100], "counts": "~~"}, "is no compressed run-length encoding"),
        (
            {"size": [50, 100], "counts": "\u00e9"},
            "mask whose run lengths do not fit the image dropped: annotation 9, '\u00e9' is no compressed run-length",
        ),
        ([[60, 30, 70, 30, 70, 40]], "mask outside of its box dropped: annotation 9"),
        ([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9, 0.1, 0.9]], "mask outside of its box dropped: annotation 9"),
        ({"size": [50, 100], "counts": ""}, "is no compressed run-length encoding"),
        ({"size": [50, 100], "counts": [5000]}, "mask without a pixel dropped"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_coco_source_counts_what_is_no_mask(segmentation: Any, note: str, tmp_path: Path) -> None:
    write(tmp_path, [box(WIDE, id=9, segmentation=segmentation), box(WIDE, 90, segmentation=[SQUARE])])
    truth = single_record(open_source(tmp_path, masks=True)).truth(SIZE)
    [told] = truth.notes
    assert told.partition(":")[2].startswith(" annotation 9")
    assert re.search(note, told)
    assert (truth.annotations, truth.dropped) == (2, 1)
    assert len(truth.values["detection"]["boxes"]) == 2, "its box is one all the same"
    assert truth.values["masks"]["classes"].tolist() == [3]
    assert len(truth.values["masks"]["masks"]) == 1


def test_coco_source_takes_boxes_that_are_not_stated_from_masks(tmp_path: Path) -> None:
    without = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [SQUARE]}
    damaged = {"id": 2, "image_id": 7, "category_id": 3, "segmentation": [[1, 2]]}
    write(tmp_path, [without, damaged, box([1, 1], id=3, segmentation=[SQUARE])])
    truth = single_record(open_source(tmp_path, masks=True)).truth(SIZE)
    assert truth.values["masks"]["boxes"].tolist() == [[10, 5, 40, 26]]
    assert truth.notes == [
        "box without four numbers dropped, polygon of fewer than three points dropped: annotation 2",
        "box without four numbers dropped: annotation 3",
    ]
    assert single_record(open_source(tmp_path)).truth(SIZE).dropped == 3


def test_coco_source_takes_a_polygon_without_a_list_around_it(tmp_path: Path) -> None:
    write(tmp_path, [box(WIDE, segmentation=SQUARE), box(WIDE, segmentation=[[str(each) for each in SQUARE]])])
    one, other = single_record(open_source(tmp_path, masks=True)).truth(SIZE).values["masks"]["masks"]
    assert one == other
    assert decode_mask(one, SIZE).sum() == 30 * 21


def test_coco_source_drops_crowds_and_bad_boxes_from_masks_as_from_detection(tmp_path: Path) -> None:
    crowd = box(WIDE, iscrowd=1, segmentation=compressed(ellipse()))
    write(tmp_path, [crowd, box([1, 1, 0, 5], segmentation=[SQUARE]), box(WIDE, 1, segmentation=[SQUARE])])
    truth = single_record(open_source(tmp_path, masks=True)).truth(SIZE)
    assert truth.values["masks"]["classes"].tolist() == truth.values["detection"]["classes"].tolist() == [0]
    assert (truth.annotations, truth.dropped, len(truth.notes)) == (3, 1, 2)


def test_coco_source_of_an_image_without_annotations_has_an_empty_label_of_masks(tmp_path: Path) -> None:
    write(tmp_path, [])
    value = single_record(open_source(tmp_path, masks=True)).truth(SIZE).values["masks"]
    assert (len(value["masks"]), value["boxes"].shape) == (0, (0, 4))
