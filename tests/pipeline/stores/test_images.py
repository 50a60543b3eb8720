"""The image store: byte ranges that are right, tars that are the same, and nothing half-written in sight."""

from __future__ import annotations

import hashlib
import io
import resource
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DataError
from pipeline.stores.images import ImageShard, ImageStore, NewImage, ShardWriter
from tests.disk import image_shard

MakeImages = Callable[[str, Sequence[NDArray[np.uint8]]], ImageShard]
SIZES = [1, 511, 512, 513, 1024, 20_000]
"""Bytes: around tar's blocks of 512."""


def blobs() -> list[bytes]:
    return [np.random.default_rng(size).bytes(size) for size in SIZES]


def new(data: bytes, source: str = "a.jpg") -> NewImage:
    return NewImage(data, "jpg", 4, 3, source)


def write(folder: Path, data: Sequence[bytes], name: str = "shard-000000") -> Path:
    writer = ShardWriter(folder, name)
    for number, one in enumerate(data):
        writer.add(new(one, f"{number}.jpg"))
    writer.close()
    return writer.tar_path


def test_every_image_is_one_seek_away(tmp_path: Path) -> None:
    path, data = write(tmp_path, blobs()), blobs()
    shard, whole = image_shard(path), path.read_bytes()
    for index, one in enumerate(data):
        row = shard.row(index)
        assert shard.read(index) == one == whole[row.offset : row.offset + row.length]
        assert row.sha256 == hashlib.sha256(one).hexdigest()
        assert row.key == shard.keys[index] == row.sha256[:16]
        assert (row.width, row.height, row.suffix, row.source) == (4, 3, "jpg", f"{index}.jpg")


def test_a_shard_is_a_plain_tar(tmp_path: Path) -> None:
    path, data = write(tmp_path, blobs()), blobs()
    keys = image_shard(path).keys
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{key}.jpg" for key in keys]
        assert [tar.extractfile(member).read() for member in members] == data  # type: ignore[union-attr]
        assert [member.offset_data for member in members] == [image_shard(path).row(n).offset for n in range(6)]


def test_webdataset_reads_a_shard_as_it_is(make_images: MakeImages) -> None:
    webdataset = pytest.importorskip("webdataset")
    pictures = [np.full((5, 4 + number, 3), 40 * number, np.uint8) for number in range(3)]
    shard = make_images("shard-000000", pictures)
    samples = list(webdataset.WebDataset(str(shard.tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == shard.keys
    for index, sample in enumerate(samples):
        assert sample["png"] == shard.read(index)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["png"]))), pictures[index])


def test_equal_images_make_equal_files(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", blobs()), write(tmp_path / "b", blobs())
    assert one.read_bytes() == other.read_bytes()
    assert one.with_suffix(".parquet").read_bytes() == other.with_suffix(".parquet").read_bytes()


def test_the_index_is_plain_parquet(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path, blobs()).with_suffix(".parquet"))
    assert table.column_names == ["key", "sha256", "suffix", "offset", "length", "width", "height", "source"]
    assert table.column("length").to_pylist() == SIZES


def test_nothing_is_seen_before_it_is_whole(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "shard-000000")
    writer.add(new(b"1"))
    assert not list(tmp_path.glob("*.tar"))
    assert not list(tmp_path.glob("*.parquet"))
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-000000.parquet", "shard-000000.tar"]


def test_a_discarded_shard_leaves_nothing(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "shard-000000")
    writer.add(new(b"1" * 100_000))
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_a_tar_cut_short_names_the_first_image_that_is_not_whole(tmp_path: Path) -> None:
    path = write(tmp_path, blobs())
    shard = image_shard(path)
    last = shard.row(5)
    path.write_bytes(path.read_bytes()[: last.offset + 100])
    assert shard.read(4) == blobs()[4]
    with pytest.raises(DataError, match=rf"shard-000000\.tar: cut short: image {last.key}"):
        shard.read(5)


def test_a_tar_that_is_gone_is_a_data_error(tmp_path: Path) -> None:
    path = write(tmp_path, blobs())
    shard = image_shard(path)
    path.unlink()
    with pytest.raises(DataError, match=rf"shard-000000\.tar: .*No such file.*{shard.keys[2]}"):
        shard.read(2)


def test_an_index_that_is_damaged_missing_or_of_another_version_is_a_data_error(tmp_path: Path) -> None:
    path = write(tmp_path, blobs())
    index = path.with_suffix(".parquet")
    table = pq.read_table(index)
    pq.write_table(table.replace_schema_metadata({"must_images": "99"}), index)
    with pytest.raises(DataError, match=r"version '99'; this version reads 1"):
        len(image_shard(path))
    pq.write_table(pa.table({"key": ["k"]}), index)
    with pytest.raises(DataError, match=r"version '\?'"):
        len(image_shard(path))
    index.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"shard-000000\.parquet: not a readable image index"):
        len(image_shard(path))
    index.unlink()
    with pytest.raises(DataError, match="not a readable image index"):
        len(image_shard(path))


def test_many_threads_read_one_shard(tmp_path: Path) -> None:
    shard, data = image_shard(write(tmp_path, blobs())), blobs()
    with ThreadPoolExecutor(8) as pool:
        for index, found in enumerate(pool.map(shard.read, [n % 6 for n in range(300)])):
            assert found == data[index % 6]


def test_more_shards_can_be_read_than_files_may_be_open(tmp_path: Path) -> None:
    shards = [image_shard(write(tmp_path, [bytes([n])], f"shard-{n:06d}")) for n in range(80)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (70, hard))
    try:
        assert [shard.read(0) for shard in shards] == [bytes([n]) for n in range(80)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_store_counts_its_images(tmp_path: Path) -> None:
    shards = [image_shard(write(tmp_path, blobs()[:count], f"shard-{count:06d}")) for count in (1, 3)]
    assert len(ImageStore(shards)) == 4
    assert len(ImageStore([])) == 0
