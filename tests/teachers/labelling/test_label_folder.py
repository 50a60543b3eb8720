"""Label folders in local and remote roots: shards are found by one listing and read at most once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import tasks
from pipeline.storage.root import Root, hash_file
from pipeline.stores.images import ImageShard
from pipeline.stores.labels import APPLICABILITY, COMMON, SCHEMA_VERSION, LabelSpace
from teachers.labelling import label_folder
from teachers.labelling.label_folder import LabelFolder
from tests.s3 import listening

MakeImages = Callable[[str, Sequence[NDArray[np.uint8]]], ImageShard]


@pytest.fixture
def shards(make_images: MakeImages, noise: Callable[[int], NDArray[np.uint8]]) -> list[ImageShard]:
    """Three shards of two images."""
    return [make_images(f"s{number}", [noise(2 * number), noise(2 * number + 1)]) for number in range(3)]


def label(
    folder: LabelFolder,
    shard: ImageShard,
    statuses: Sequence[str] = ("ok", "failed"),
    version: int = SCHEMA_VERSION,
    without: str = "",
) -> None:
    """Write a label file where `publish` expects it, without the column of this name."""
    path = folder.root.local_path(folder.path_of(shard))
    path.parent.mkdir(parents=True, exist_ok=True)
    space = LabelSpace("depth")
    rows = [{"key": key, "status": status} for key, status in zip(shard.keys, statuses, strict=False)]
    schema = pa.schema(
        [field for field in (*COMMON, APPLICABILITY, *tasks.label(space).columns()) if field.name != without]
    )
    metadata = {"schema_version": version, "space": space.to_json(), "calibration": None}
    pq.write_table(pa.Table.from_pylist(rows, schema.with_metadata({"must": json.dumps(metadata)})), path)


def test_label_folder_refresh_finds_published_shards(any_root: Root, shards: list[ImageShard]) -> None:
    folder = LabelFolder(any_root, "labels/t")
    folder.refresh(shards)
    assert not any(folder.has(shard) for shard in shards)
    label(folder, shards[0])
    folder.publish(shards[0])
    again = LabelFolder(any_root, "labels/t")
    again.refresh(shards)
    assert [again.has(shard) for shard in shards] == [True, False, False]
    assert again.facts_of(shards[0]) == folder.facts_of(shards[0])
    assert again.facts_of(shards[0])["failed"] == 1
    file = any_root.file(folder.path_of(shards[0]), again.facts_of(shards[0]))
    assert file.load(hash_file) == again.facts_of(shards[0])["sha256"]


def test_label_folder_refresh_ignores_damaged_or_short_shards(any_root: Root, shards: list[ImageShard]) -> None:
    folder = LabelFolder(any_root, "labels/t")
    (any_root / folder.path_of(shards[0])).write(b"PAR1 and no more")
    label(folder, shards[1], ["ok"])
    label(folder, shards[2], without="near")
    for shard in shards[1:]:
        (any_root / folder.path_of(shard)).write(any_root.local_path(folder.path_of(shard)).read_bytes())
    folder.refresh(shards)
    assert not any(folder.has(shard) for shard in shards)


def test_label_folder_refresh_ignores_shards_of_an_earlier_version(any_root: Root, shards: list[ImageShard]) -> None:
    folder = LabelFolder(any_root, "labels/t")
    label(folder, shards[0], version=SCHEMA_VERSION - 1)
    (any_root / folder.path_of(shards[0])).write(any_root.local_path(folder.path_of(shards[0])).read_bytes())
    folder.refresh(shards)
    assert not folder.has(shards[0]), "the next run labels it again"


def test_label_folder_refresh_reads_only_unknown_shards(
    any_root: Root, shards: list[ImageShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = LabelFolder(any_root, "labels/t")
    for shard in shards:
        label(first, shard)
        first.publish(shard)
    another = {**first.facts[first.path_of(shards[2])], "size": 1}
    known = {**first.facts, first.path_of(shards[2]): another}
    read = []
    monkeypatch.setattr(label_folder, "read_facts", lambda path, rows: read.append(path.name))
    LabelFolder(any_root, "labels/t", known).refresh(shards)  # type: ignore[arg-type]
    assert read == [first.path_of(shards[2]).rpartition("/")[2]], "read again, as its size differs"


def test_label_folder_refresh_lists_once(bucket: str, shards: list[ImageShard]) -> None:
    root = Root.of(f"{bucket}/root")
    first = LabelFolder(root, "labels/t")
    for shard in shards:
        label(first, shard)
        first.publish(shard)
    shutil.rmtree(root.cache.folder)
    with listening() as requests:
        LabelFolder(root, "labels/t", first.facts).refresh(shards)
    assert requests.count() == {"GET": 1}
    with listening() as requests:
        LabelFolder(root, "labels/t").refresh(shards)
    assert requests.count() == {"GET": 1 + 3}
