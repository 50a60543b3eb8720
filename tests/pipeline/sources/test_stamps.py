"""Contracts of every source about its files: the number of records, and stamps that change with a file."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.recipe.plugins import modules
from pipeline.sources import BaseSource
from pipeline.stores.images import NewImage, ShardWriter
from tests.videos import write_video

NAMES = ("a", "b")
GENERATED = {"scenes", "photographs"}
"""Kinds whose pictures have no file of their own."""


def image(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 4), 7, np.uint8)).save(path)
    return path.read_bytes()


def write_set(root: Path) -> None:
    """Write a folder that every kind that reads files can read: a file `a` and a file `b` with an image each."""
    for name in NAMES:
        for folder in ("images/train/kind", "masks/train/kind", "depth", "normals"):
            data = image(root / folder / f"{name}.png")
        writer = ShardWriter(root, name)
        writer.add(NewImage(data, "png", 4, 3, ""))
        writer.close()
        pq.write_table(pa.table({"image": [data]}), root / f"{name}.parquet")  # overwrites the tar's index
    (root / "tasks.xml").write_text("<annotations><version/><image name='a.png'/><image name='b.png'/></annotations>")
    tasks = [{"annotations": [], "data": {"image": f"{name}.png"}} for name in NAMES]
    (root / "tasks.json").write_text(json.dumps(tasks))
    listed = [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate(NAMES)]
    (root / "listed.csv").write_text("image\nimages/train/kind/a.png\nimages/train/kind/b.png\n")
    (root / "instances_train.json").write_text(json.dumps({"categories": [], "images": listed, "annotations": []}))


OPTIONS: dict[str, dict[str, Any]] = {
    "folder": {"path": "images"},
    "imagefolder": {"path": "images"},
    "masks": {"classes": ["x"] * 8},
    "coco": {"images": {"train": "images/train/kind"}},
    "depth": {"rgb": "images/train/kind"},
    "normals": {"images": "images/train/kind"},
    "rasters": {"images": "images/train/kind", "depth": "depth", "normals": "normals"},
    "parquet": {"hold_out": 0},
    "csv": {},
    "webdataset": {"hold_out": 0},
    "video": {"every": 1},
    "yolo": {"path": "images", "classes": ["x"]},
    "voc": {"path": "images", "classes": ["x"]},
    "labelme": {"path": "images", "classes": ["x"]},
    "cvat": {"images": "images"},
    "label_studio": {"images": "images"},
    "scenes": {"count": 2, "seed": 0},
    "photographs": {"count": 2, "seed": 0},
}


def open_source(kind: str, root: Path) -> BaseSource:
    module = importlib.import_module(f"pipeline.sources.{kind}")
    options = dict(OPTIONS[kind])
    if kind not in GENERATED:
        options["path"] = str(root / options.get("path", ""))
    source: BaseSource = module.Source(module.Config.model_validate(options))
    return source


@pytest.mark.parametrize("kind", modules("pipeline.sources"))
def test_source_record_has_the_stamp_of_its_file_and_source_counts_records(kind: str, tmp_path: Path) -> None:
    write_set(tmp_path)
    if kind == "video":
        pytest.importorskip("av")
        for name in NAMES:
            write_video(tmp_path / f"{name}.mp4", 1)
    source = open_source(kind, tmp_path)
    before = {record.name: record.stamp() for record in source.records()}
    assert source.count() in (len(before), None)
    if kind in GENERATED:
        assert set(before.values()) == {None}
        return
    assert len(before) == 2
    stamps = {name: stamp for name, *stamp in source.file_stamps()}
    assert before == {name: tuple(stamps[name.split("#")[0]]) for name in before}, "of the file that it is or lies in"
    for path in tmp_path.rglob("a.*"):
        os.utime(path, ns=(1, 1))
    after = {record.name: record.stamp() for record in open_source(kind, tmp_path).records()}
    (changed,) = (name for name in before if after[name] != before[name])
    assert Path(changed.split("#")[0]).stem == "a"
