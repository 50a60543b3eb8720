"""The image store: correct byte ranges, reproducible tars, and nothing half-written in sight."""

from __future__ import annotations

import hashlib
import io
import os
import re
import resource
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DataError
from pipeline.stores.images import ImageShard, ImageStore, NewImage, ShardWriter, read_index
from tests.disk import image_shard

MakeImages = Callable[[str, Sequence[NDArray[np.uint8]]], ImageShard]
SIZES = [1, 511, 512, 513, 1024, 20_000]
"""Sizes in bytes around tar's blocks of 512."""


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


def test_image_shard_reads_each_image_at_its_offset(tmp_path: Path) -> None:
    path, data = write(tmp_path, blobs()), blobs()
    shard, whole = image_shard(path), path.read_bytes()
    for index, one in enumerate(data):
        row = shard.row(index)
        assert shard.read(index) == one == whole[row.offset : row.offset + row.length]
        assert row.sha256 == hashlib.sha256(one).hexdigest()
        assert row.key == shard.keys[index] == row.sha256[:16]
        assert (row.width, row.height, row.suffix, row.source) == (4, 3, "jpg", f"{index}.jpg")


def test_shard_writer_writes_a_plain_tar(tmp_path: Path) -> None:
    path, data = write(tmp_path, blobs()), blobs()
    keys = image_shard(path).keys
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{key}.jpg" for key in keys]
        assert [tar.extractfile(member).read() for member in members] == data  # type: ignore[union-attr]
        assert [member.offset_data for member in members] == [image_shard(path).row(n).offset for n in range(6)]


def test_webdataset_reads_an_image_shard(make_images: MakeImages) -> None:
    webdataset = pytest.importorskip("webdataset")
    pictures = [np.full((5, 4 + number, 3), 40 * number, np.uint8) for number in range(3)]
    shard = make_images("shard-000000", pictures)
    samples = list(webdataset.WebDataset(str(shard.tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == shard.keys
    for index, sample in enumerate(samples):
        assert sample["png"] == shard.read(index)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["png"]))), pictures[index])


def test_shard_writer_is_deterministic(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", blobs()), write(tmp_path / "b", blobs())
    assert one.read_bytes() == other.read_bytes()
    assert one.with_suffix(".parquet").read_bytes() == other.with_suffix(".parquet").read_bytes()


def test_shard_writer_writes_a_plain_parquet_index(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path, blobs()).with_suffix(".parquet"))
    assert table.column_names == ["key", "sha256", "suffix", "offset", "length", "width", "height", "source"]
    assert table.column("length").to_pylist() == SIZES


def test_shard_writer_shows_nothing_before_close(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "shard-000000")
    writer.add(new(b"1"))
    assert not list(tmp_path.glob("*.tar"))
    assert not list(tmp_path.glob("*.parquet"))
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-000000.parquet", "shard-000000.tar"]


def test_shard_writer_discard_leaves_nothing(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "shard-000000")
    writer.add(new(b"1" * 100_000))
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_image_shard_read_names_the_first_image_missing_from_a_truncated_tar(tmp_path: Path) -> None:
    path = write(tmp_path, blobs())
    shard = image_shard(path)
    last = shard.row(5)
    path.write_bytes(path.read_bytes()[: last.offset + 100])
    assert shard.read(4) == blobs()[4]
    with pytest.raises(DataError, match=rf"shard-000000\.tar: cut short: image {last.key}"):
        shard.read(5)


def test_image_shard_read_of_a_missing_tar_is_a_data_error(tmp_path: Path) -> None:
    path = write(tmp_path, blobs())
    shard = image_shard(path)
    path.unlink()
    with pytest.raises(DataError, match=rf"shard-000000\.tar: .*No such file.*{shard.keys[2]}"):
        shard.read(2)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("key", ["0" * 16] * 3, "has a key twice"),
        ("key", [f"{number:016x}" for number in range(3)], "are not the first 16 digits"),
        ("length", [5, 1 << 40, 5], "length goes from 5 to 1099511627776"),
        ("offset", [-1, 5, 5], "offset goes from -1 to 5"),
    ],
)
def test_read_index_refuses_rows_that_are_those_of_no_image(
    column: str, values: list[Any], said: str, tmp_path: Path
) -> None:
    index = write(tmp_path, blobs()[:3]).with_suffix(".parquet")
    table = pq.read_table(index)
    place, field = table.schema.get_field_index(column), table.schema.field(column)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), index)
    with pytest.raises(DataError, match=said):
        read_index(index)


def test_read_index_damaged_missing_or_of_another_version_is_a_data_error(tmp_path: Path) -> None:
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
    with pytest.raises(DataError, match=r"shard-000000\.parquet: not a readable Parquet file"):
        len(image_shard(path))
    index.unlink()
    with pytest.raises(DataError, match="there is no such file"):
        len(image_shard(path))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("key", "../../../0123456"),
        ("key", "0123456789abcdef\n"),
        ("key", ""),
        ("key", None),
        ("suffix", "/../x"),
        ("suffix", ""),
    ],
)
def test_read_index_refuses_what_would_be_a_name_of_a_file_elsewhere(
    column: str, value: str | None, tmp_path: Path
) -> None:
    index = write(tmp_path, blobs()).with_suffix(".parquet")
    table = pq.read_table(index)
    column_number = table.column_names.index(column)
    values = [*table[column].to_pylist()[1:], value]
    field = table.schema.field(column).with_nullable(True)
    pq.write_table(table.set_column(column_number, field, pa.array(values, pa.string())), index)
    with pytest.raises(DataError, match=rf"the {column} {re.escape(repr(value))} is not"):
        read_index(index)
    read_index(index, [name for name in table.column_names if name != column])


def test_read_index_refuses_columns_of_other_types(tmp_path: Path) -> None:
    index = write(tmp_path, blobs()).with_suffix(".parquet")
    table = pq.read_table(index)
    numbers = pa.array(range(len(table)), pa.int64())
    pq.write_table(table.set_column(0, "key", numbers).replace_schema_metadata(table.schema.metadata), index)
    with pytest.raises(DataError, match=r"has the columns \['key', .*\], and not those of an image index"):
        read_index(index)


def test_image_shard_read_by_many_threads(tmp_path: Path) -> None:
    shard, data = image_shard(write(tmp_path, blobs())), blobs()
    with ThreadPoolExecutor(8) as pool:
        for index, found in enumerate(pool.map(shard.read, [n % 6 for n in range(300)])):
            assert found == data[index % 6]


def test_image_shard_keeps_no_file_open(tmp_path: Path) -> None:
    shards = [image_shard(write(tmp_path, [bytes([n])], f"shard-{n:06d}")) for n in range(80)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
    try:
        assert [shard.read(0) for shard in shards] == [bytes([n]) for n in range(80)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_image_store_counts_its_images(tmp_path: Path) -> None:
    shards = [image_shard(write(tmp_path, blobs()[:count], f"shard-{count:06d}")) for count in (1, 3)]
    assert len(ImageStore(shards)) == 4
    assert len(ImageStore([])) == 0


def test_image_shard_read_original_refuses_changed_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, blobs())
    shard, content = image_shard(path), path.read_bytes()
    assert [shard.read_original(index, "photos") for index in range(len(SIZES))] == blobs()
    place = shard.row(5).offset + 9_000
    path.write_bytes(content[:place] + bytes(200) + content[place + 200 :])
    assert shard.read_original(4, "photos") == blobs()[4]
    with pytest.raises(DataError, match=rf"tar: image {shard.keys[5]} is damaged in it\. .*--force data\.photos reads"):
        shard.read_original(5, "photos")
