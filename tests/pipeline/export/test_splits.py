"""Exports with the held-out images of the pool's sets: read back by the readers of each form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from ingest.dataset import IngestedSet
from pipeline.errors import DataError
from pipeline.sources import coco, depth, imagefolder, masks
from pipeline.stores.images import ImageShard
from student.dataset import heads_of
from student.export_samples import held_out_shards
from tests.exports import CONFIG, export_splits, samples

if TYPE_CHECKING:
    from tests.conftest import World


def held_out(world: World) -> dict[str, str]:
    """Return the file of each held-out image by its key."""
    found = IngestedSet(world.inputs("student")["data.truth"])
    shards = [shard for split in ("val", "test") for shard in found.images(split).shards]
    rows = [row for shard in shards for row in shard.table.to_pylist()]
    assert rows
    return {row["key"]: row["source"] for row in rows}


def check_records(source: Any, world: World) -> None:
    """Check that a set has the images of both splits."""
    splits = [record.split for record in source.records()]
    assert not source.problems
    assert (splits.count("train"), len(splits)) == (len(samples(world)), len(samples(world)) + len(held_out(world)))


def test_held_out_shards_have_each_image_once_with_true_labels(world: World) -> None:
    inputs = world.inputs("student")
    shards = list(held_out_shards(heads_of(CONFIG, inputs), inputs))
    keys = [shard.images.keys[row] for shard in shards for row in shard.rows]
    assert sorted(keys) == sorted(held_out(world))
    for shard in shards:
        assert (shard.dataset, "gabor" in shard.label_sources) == ("truth", False)
        assert {source.origin for each in shard.label_sources.values() for source in each} == {("true", "truth")}


@pytest.mark.parametrize("form", ["coco", "masks", "hf", "webdataset"])
def test_labelled_samples_copy_no_image_that_has_changed(
    form: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ImageShard.read

    def zero(shard: ImageShard, index: int) -> bytes:
        data = read(shard, index)
        return data[:200] + bytes(200) + data[400:]

    monkeypatch.setattr(ImageShard, "read", zero)
    with pytest.raises(DataError, match=r"\.tar: image \w+ is damaged in it\. .*--force data\.\w+ reads"):
        export_splits(world, form, tmp_path / "out")


def test_coco_writer_writes_a_validation_split(world: World, tmp_path: Path) -> None:
    summary = export_splits(world, "coco", tmp_path / "out", ["boxes"])
    assert summary["splits"] == {"train": len(samples(world)), "val": len(held_out(world))}
    check_records(coco.Source(coco.Config(path=str(tmp_path / "out"))), world)
    for split in ("train", "val"):
        content = json.loads((tmp_path / "out" / f"instances_{split}.json").read_text("utf-8"))
        for image in content["images"]:
            assert image["file_name"].startswith(f"{image['set']}/")
            assert image["origin_name"] == {"true": "truth", "pseudo": "boxes"}[image["origin"]]
        by_id = {image["id"]: image["origin"] for image in content["images"]}
        assert all(each["origin"] == by_id[each["image_id"]] for each in content["annotations"])
        assert set(by_id.values()) == ({"true"} if split == "val" else {"true", "pseudo"})


def test_masks_writer_writes_a_validation_split(world: World, tmp_path: Path) -> None:
    export_splits(world, "masks", tmp_path / "out", ["masks", "depth"])
    check_records(masks.Source(masks.Config(path=str(tmp_path / "out"))), world)
    config = depth.Config(path=str(tmp_path / "out"), rgb="images")
    records = list(depth.Source(config).records())
    assert sum(record.split == "val" for record in records) == len(held_out(world))


def test_yolo_writer_writes_a_validation_split(world: World, tmp_path: Path) -> None:
    export_splits(world, "yolo", tmp_path / "out", ["boxes", "kinds"])
    boxes = tmp_path / "out" / "boxes"
    about = yaml.safe_load((boxes / "data.yaml").read_text("utf-8"))
    assert (about["train"], about["val"]) == ("images/train", "images/val")
    images = [path for path in (boxes / about["val"]).rglob("*") if path.is_file()]
    assert len(images) == len(held_out(world))
    for path in images:  # as readers find them: the last /images/ becomes /labels/
        assert Path("/labels/".join(str(path).rsplit("/images/", 1))).with_suffix(".txt").exists()
    check_records(imagefolder.Source(imagefolder.Config(path=str(tmp_path / "out" / "kinds"))), world)


def test_labels_csv_lists_every_label_with_its_origin(world: World, tmp_path: Path) -> None:
    export_splits(world, "webdataset", tmp_path / "out")
    with open(tmp_path / "out" / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = samples(world)
    train = {(row["key"], row["head"]): row for row in rows if row["split"] == "train"}
    assert set(train) == {(key, head) for key, sample in wanted.items() for head in sample.values}
    for (key, head), row in train.items():
        assert row["source"] == wanted[key].source
        is_true = row["set"] == "truth" and head != "gabor"
        assert (row["origin"], row["origin_name"]) == (("true", "truth") if is_true else ("pseudo", head))
    val = [row for row in rows if row["split"] == "val"]
    assert {row["key"]: row["source"] for row in val} == held_out(world)
    assert {row["origin"] for row in val} == {"true"}
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["train-000000.tar", "val-000000.tar"]


def test_hf_writer_writes_a_validation_split(world: World, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export_splits(world, "hf", tmp_path / "out", ["kinds"])
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in found.items()} == {
        "train": len(samples(world)),
        "validation": len(held_out(world)),
    }
    assert set(found["validation"]["kinds_origin"]) == {"true"}
    assert set(found["train"]["kinds_origin_name"]) == {"truth", "kinds"}
