"""The sources on real sets of images, which lie outside of the repository."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.decode import decode_image, inspect_image
from pipeline.sources import BaseSource, SourceRecord, TrueLabels, coco, depth, folder, imagefolder, masks, parquet

DATA = Path(os.environ.get("MUST_DATA") or Path(__file__).parents[3] / "../shared/data")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}; set MUST_DATA to its folder")


def splits(source: BaseSource) -> Counter[str]:
    return Counter(record.split for record in source.records())


def truth_of(record: SourceRecord) -> TrueLabels:
    found = inspect_image(record.read())
    return record.truth((found.width, found.height))


def test_folder_source_reads_real_pool() -> None:
    source = folder.Source(folder.Config(path=str(DATA / "pool")))
    records = list(source.records())
    assert len(records) == len(source.file_stamps()) == 1500
    for record in records[::100]:
        data = record.read()
        found = inspect_image(data)
        assert found.suffix == "jpg"
        assert decode_image(data).size == (found.width, found.height)


def test_imagefolder_source_reads_clothing() -> None:
    source = imagefolder.Source(imagefolder.Config(path=str(DATA / "clothing")))
    classes = source.spaces()["classification"].classes
    assert len(classes) == 10
    assert classes[:3] == ("dress", "hat", "longsleeve")
    assert splits(source).total() == 3781
    assert set(splits(source)) == {"train", "val", "test"}
    for record in list(source.records())[::500]:
        index = truth_of(record).values["classification"]["probs"].argmax()
        assert record.name.split("/")[1] == classes[index]


@pytest.mark.parametrize(("kind", "count"), [("category", 80), ("supercategory", 12)])
def test_coco_source_reads_coco256(kind: str, count: int) -> None:
    config = coco.Config.model_validate({"path": str(DATA / "coco256"), "classes": kind})
    source = coco.Source(config)
    classes = source.spaces()["detection"].classes
    assert (len(classes), classes[0]) == (count, "person")
    boxes: Counter[str] = Counter()
    for record in source.records():
        truth = truth_of(record)
        value = truth.values["detection"]
        assert (value["boxes"][:, 2:] > value["boxes"][:, :2]).all()
        assert value["boxes"].max(initial=0) <= value["size"].max()
        boxes[record.split] += len(value["boxes"])
        assert truth.notes == []
    assert boxes == {"train": 929, "val": 898}
    assert splits(source) == {"train": 128, "val": 128}


def test_masks_source_reads_camvid() -> None:
    source = masks.Source(masks.Config(path=str(DATA / "camvid")))
    assert source.spaces()["segmentation"].classes[:4] == ("sky", "building", "pole", "road")
    assert splits(source) == {"train": 367, "val": 101, "test": 233}
    for record in list(source.records())[::100]:
        classes = truth_of(record).values["segmentation"]["classes"]
        assert classes.shape == (270, 360)
        assert set(np.unique(classes)) <= {*range(11), 65535}


def test_masks_source_reads_sparse_ids_of_coco256() -> None:
    config = masks.Config(path=str(DATA / "coco256"), masks="semantic", classes="semantic_classes.json")
    source = masks.Source(config)
    classes = source.spaces()["segmentation"].classes
    assert "unlabeled" not in classes
    assert classes[:2] == ("person", "bicycle")
    truths = [truth_of(record) for record in source.records()]
    assert Counter(note for truth in truths for note in truth.notes) == {"no mask": 56}
    for truth in truths:
        for value in truth.values.values():
            kept = value["classes"][value["classes"] != 65535]
            assert kept.max(initial=0) < len(classes)


def test_depth_source_reads_indoor_depth() -> None:
    source = depth.Source(depth.Config(path=str(DATA / "indoor_depth"), normals="from_depth", hold_out=("office",)))
    assert splits(source) == {"train": 175, "test": 81}
    notes: Counter[str] = Counter()
    for record in list(source.records())[::8]:
        truth = truth_of(record)
        metres = truth.values["depth"]["depth"]
        assert 0.3 < np.median(metres[metres > 0]) < 6
        notes.update(truth.notes)
        assert ("lab" in record.name) == ("normals" not in truth.values)
        if "normals" in truth.values:
            normals = truth.values["normals"]["normals"]
            known = np.abs(normals).sum(-1) > 0
            assert known[metres > 0].mean() > 0.9
            assert not known[metres == 0].any()
    assert set(notes) == {"no normals: no intrinsics"}


def test_depth_source_normals_face_up_on_tables_and_sideways_on_cupboards() -> None:
    """A kitchen seen from its corner: red cupboards to the left, a table in front of them."""
    source = depth.Source(depth.Config(path=str(DATA / "indoor_depth"), normals="from_depth"))
    record = next(record for record in source.records() if record.name.endswith("kitchen_frame-000000.jpg"))
    normals = truth_of(record).values["normals"]["normals"]
    table, cupboard = np.median(normals[120:150, 180:230], axis=(0, 1)), np.median(normals[40:90, 20:70], axis=(0, 1))
    assert table[1] > 0.6
    assert cupboard[0] > 0.6
    assert table @ cupboard == pytest.approx(0, abs=0.15), "they stand at a right angle"


def test_parquet_source_reads_cifar10() -> None:
    source = parquet.Source(parquet.Config(path=str(DATA / "cifar10")))
    assert source.spaces()["classification"].classes[:3] == ("airplane", "automobile", "bird")
    seen: Counter[str] = Counter()
    for number, record in enumerate(source.records()):
        seen[record.split] += 1
        if number % 5000 == 0:
            assert decode_image(record.read()).size == (32, 32)
            assert truth_of(record).values["classification"]["probs"].sum() == 1
    assert seen == {"train": 50_000, "test": 10_000}
