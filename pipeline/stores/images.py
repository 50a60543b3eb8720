"""The image store: images as WebDataset tars with a Parquet index beside each, their bytes untouched.

    images/<split>/shard-000000.tar        <key>.jpg <key>.png ... in order
    images/<split>/shard-000000.parquet    key, sha256, suffix, offset, length, width, height, source

`key` is the first 16 hex digits of the sha256 of the image's bytes: it joins images and labels and finds duplicates.
The index gives every image's byte range in the tar, so any image is one seek away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError
from pipeline.storage.atomic import atomic_write, publish, temporary_path
from pipeline.storage.root import StoredFile, local_file

SCHEMA_VERSION = 1
INDEX = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("suffix", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False, metadata={"about": "of the image's first byte in the tar"}),
        pa.field("length", pa.int64(), nullable=False, metadata={"about": "bytes"}),
        pa.field("width", pa.int32(), nullable=False, metadata={"about": "pixels, EXIF orientation applied"}),
        pa.field("height", pa.int32(), nullable=False, metadata={"about": "pixels, EXIF orientation applied"}),
        pa.field("source", pa.string(), nullable=False, metadata={"about": "the file it came from"}),
    ],
    metadata={"must_images": str(SCHEMA_VERSION)},
)


@dataclasses.dataclass(frozen=True)
class ImageRow:
    """One line of the index; sizes in pixels of the upright image, offsets and lengths in bytes."""

    key: str
    sha256: str
    suffix: str
    offset: int
    length: int
    width: int
    height: int
    source: str


@dataclasses.dataclass(frozen=True)
class NewImage:
    """An image about to be stored."""

    data: bytes
    suffix: str
    width: int
    height: int
    source: str

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def key(self) -> str:
        return self.sha256[:16]


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all. Equal tables make equal files."""
    with atomic_write(path) as part:
        pq.write_table(table, part)


class ShardWriter:
    """Writes one image shard: the tar and its index appear under their names only when both are whole."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tar_path, self.index_path = folder / f"{name}.tar", folder / f"{name}.parquet"
        self._part = temporary_path(self.tar_path)
        self._file = open(self._part, "wb")  # noqa: SIM115 - closed by close() or discard()
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self.rows: list[ImageRow] = []

    def add(self, image: NewImage) -> ImageRow:
        """Append an image; returns its index row."""
        info = tarfile.TarInfo(f"{image.key}.{image.suffix}")
        info.size = len(image.data)  # mtime, owner and mode stay at fixed values: equal images make equal tars
        self._tar.addfile(info, io.BytesIO(image.data))
        offset = self._file.tell() - tarfile.BLOCKSIZE * -(-info.size // tarfile.BLOCKSIZE)
        row = ImageRow(
            image.key, image.sha256, image.suffix, offset, info.size, image.width, image.height, image.source
        )
        self.rows.append(row)
        return row

    def close(self) -> None:
        """Finish: the index is published first, the tar last, so that a tar always has its index."""
        self._tar.close()
        self._file.close()
        rows = [dataclasses.asdict(row) for row in self.rows]
        write_table(self.index_path, pa.Table.from_pylist(rows, schema=INDEX))
        publish(self._part, self.tar_path)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what is still to write may find no space, and need not
            self._file.close()


def local_shard(tar: Path) -> ImageShard:
    """An image shard of this machine that is part of no artifact yet."""
    return ImageShard(local_file(tar), local_file(tar.with_suffix(".parquet")))


def read_index(path: Path, columns: list[str] | None = None) -> pa.Table:
    """The index of an image shard, or some of its columns. DataError if it is damaged or of another version."""
    try:
        with pq.ParquetFile(path) as file:  # `read_table` takes five times as long over a small one
            table = file.read(columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a readable image index ({error}).") from error
    version = (table.schema.metadata or {}).get(b"must_images", b"?").decode()
    if version != str(SCHEMA_VERSION):
        raise DataError(f"{path}: image store version {version!r}; this version reads {SCHEMA_VERSION}.")
    return table


class ImageShard:
    """One image shard, for reading at any position, by any number of threads. Its index is read when first needed."""

    def __init__(self, tar: StoredFile, index: StoredFile) -> None:
        self.tar, self.index = tar, index
        self.name, self.sha256 = tar.path.name.removesuffix(".tar"), tar.sha256

    @property
    def address(self) -> str:
        """By what label files name it: the first 16 digits of its hash."""
        return self.sha256[:16]

    @functools.cached_property
    def table(self) -> pa.Table:
        """The index: `INDEX` is its schema."""
        return self.columns()

    def columns(self, *names: str) -> pa.Table:
        """Some columns of the index, or all."""
        return self.index.load(lambda path: read_index(path, list(names) or None))

    @functools.cached_property
    def keys(self) -> list[str]:
        """The images' keys, in order."""
        keys: list[str] = self.table.column("key").to_pylist()
        return keys

    @functools.cached_property
    def _spans(self) -> list[tuple[int, int]]:
        """(offset, length) of every image."""
        columns = (self.table.column(name).to_pylist() for name in ("offset", "length"))
        return list(zip(*columns, strict=True))

    def __len__(self) -> int:
        return len(self.keys)

    def row(self, index: int) -> ImageRow:
        return ImageRow(**self.table.slice(index, 1).to_pylist()[0])

    def download(self, share: float) -> None:
        """For those who will read many of the images: of a remote shard, have the tar in the cache, if it takes up no
        more than this share of it. Otherwise, each `read` fetches its image alone.
        """
        self.tar.download(share)

    def read(self, index: int) -> bytes:
        """The bytes of image `index`. Raises DataError if the tar is not there or shorter than its index says.

        The tar is opened for each image, some ten microseconds: a pool of thousands of shards would use up the
        process's file handles if each kept its own.
        """
        offset, length = self._spans[index]
        try:
            data = self.tar.read(offset, length)
        except OSError as error:
            raise DataError(f"{self.tar}: can't be read ({error.strerror}): image {self.keys[index]}.") from error
        if len(data) != length:
            raise DataError(f"{self.tar}: cut short: image {self.keys[index]} needs bytes that are not there.")
        return data


class ImageStore:
    """The shards of one split of one set, in order."""

    def __init__(self, shards: Sequence[ImageShard]) -> None:
        self.shards = list(shards)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)
