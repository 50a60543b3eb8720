"""Image store: WebDataset tars of images, bytes untouched, each with a Parquet index beside it.

    images/<split>/shard-000000.tar        <key>.jpg <key>.png ... in order
    images/<split>/shard-000000.parquet    key, sha256, suffix, offset, length, width, height, source

`key` is the first 16 hex digits of the sha256 of the image's bytes: it joins images and labels and finds duplicates.
The index holds the byte range of every image in the tar, so that any image is one seek away.

Resized copies of images (`ingest/resized.py`) are stored alike. Their index says of each image what that of the
original says, but for suffix, offset and length.
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
import pyarrow.compute as pc

from pipeline.errors import DataError
from pipeline.storage.atomic import atomic_write, commit, temporary_path
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.root import StoredFile, local_file
from pipeline.storage.shortage import raise_shortage

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

NAMES = {
    "key": (r"^[0-9a-f]{16}\z", "16 hex digits"),
    "suffix": (r"^[a-z0-9]{1,5}\z", "a few letters"),
}
"""The form of the columns that names of files are made of."""
KEY_DIGITS = 16
LIMITS = {"offset": 1 << 50, "length": 1 << 31}
"""Places in a tar that no image has: an index with larger ones is damaged."""
REMEDY = "Delete its artifact's folder, and run again: its step then makes it again."


@dataclasses.dataclass(frozen=True)
class ImageRow:
    """One row of the index: width and height in pixels of the upright image, offset and length in bytes."""

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
    """An image to be stored: its bytes as they are, and what the index says about them."""

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
    """Write a Parquet file atomically. Equal tables make equal files."""
    with atomic_write(path) as temporary:
        write_parquet(temporary, table)


class ShardWriter:
    """Writes one image shard: the tar and its index appear when both are complete."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tar_path, self.index_path = folder / f"{name}.tar", folder / f"{name}.parquet"
        self._temporary = temporary_path(self.tar_path)
        self._tar = tarfile.TarFile(self._temporary, "w", format=tarfile.USTAR_FORMAT)
        self._rows: list[ImageRow] = []

    def add(self, image: NewImage) -> None:
        """Append an image."""
        size = image.width, image.height
        self.add_row(ImageRow(image.key, image.sha256, image.suffix, 0, 0, *size, image.source), image.data)

    def add_row(self, row: ImageRow, data: bytes) -> None:
        """Append an image with these bytes, of which the index is to say what `row` does, but for offset and length."""
        info = tarfile.TarInfo(f"{row.key}.{row.suffix}")
        info.size = len(data)  # mtime, owner and mode stay at fixed values: equal images make equal tars
        self._tar.addfile(info, io.BytesIO(data))
        offset = self._tar.offset - tarfile.BLOCKSIZE * -(-info.size // tarfile.BLOCKSIZE)
        self._rows.append(dataclasses.replace(row, offset=offset, length=info.size))

    def close(self) -> None:
        """Publish the index and then the tar, so that every tar has its index."""
        self._tar.close()
        write_table(self.index_path, pa.Table.from_pylist([vars(row) for row in self._rows], schema=INDEX))
        commit(self._temporary, self.tar_path)

    def discard(self) -> None:
        """Delete the unfinished shard."""
        self._temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # on a full disk the rest can't be written, and need not be
            self._tar.close()


def local_shard(tar: Path) -> ImageShard:
    """Return an image shard of this machine that belongs to no artifact yet."""
    return ImageShard(local_file(tar), local_file(tar.with_suffix(".parquet")))


def read_index(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read the index of an image shard, or some of its columns. Raises DataError if damaged or of another version."""
    table = read_parquet(path, columns)
    version = (table.schema.metadata or {}).get(b"must_images", b"?").decode()
    if version != str(SCHEMA_VERSION):
        raise DataError(f"{path}: image store version {version!r}; this version reads {SCHEMA_VERSION}.")
    if {field.name: field.type for field in table.schema} != {
        name: INDEX.field(name).type for name in columns or INDEX.names
    }:
        raise DataError(f"{path}: has the columns {table.schema.names}, and not those of an image index. {REMEDY}")
    _check_names(path, table)
    _check_rows(path, table)
    return table


def _check_rows(path: Path, table: pa.Table) -> None:
    """Raise DataError unless each key is there once, of the image's hash, and images have a place in a tar."""
    columns = set(table.column_names)
    if "key" in columns and len(table["key"].unique()) != len(table):
        raise DataError(f"{path}: has a key twice. {REMEDY}")
    if {"key", "sha256"} <= columns and not table["key"].equals(
        pc.utf8_slice_codeunits(table["sha256"], 0, KEY_DIGITS)
    ):
        raise DataError(f"{path}: keys are not the first {KEY_DIGITS} digits of the images' sha256. {REMEDY}")
    for name in sorted(LIMITS.keys() & columns):
        ends = pc.min_max(table[name]).as_py()
        if len(table) and not 0 <= ends["min"] <= ends["max"] < LIMITS[name]:
            raise DataError(f"{path}: {name} goes from {ends['min']} to {ends['max']}. {REMEDY}")


def _check_names(path: Path, table: pa.Table) -> None:
    """Raise DataError unless keys and suffixes are what ShardWriter writes: exports make file names of them."""
    for column, (pattern, form) in NAMES.items():
        if column in table.column_names:
            fits = pc.fill_null(pc.match_substring_regex(table[column], pattern), False)
            odd = table[column].filter(pc.invert(fits))
            if len(odd):
                raise DataError(f"{path}: the {column} {odd[0].as_py()!r} is not {form}. {REMEDY}")


class ImageShard:
    """One image shard, for random access by any number of threads. Its index is read when first needed.

    >>> shard = local_shard(Path("images/train/shard-000000.tar"))
    >>> image = PIL.Image.open(io.BytesIO(shard.read(0)))
    """

    def __init__(self, tar: StoredFile, index: StoredFile) -> None:
        self.tar, self.index = tar, index
        self.name, self.sha256 = tar.path.name.removesuffix(".tar"), tar.sha256

    @property
    def address(self) -> str:
        """The first 16 digits of its hash, by which label files name it."""
        return self.sha256[:16]

    @functools.cached_property
    def table(self) -> pa.Table:
        """The whole index, with schema `INDEX`."""
        return self.columns()

    def columns(self, *names: str) -> pa.Table:
        """Return the index, or only some of its columns."""
        return self.index.load(lambda path: read_index(path, list(names) or None))

    @functools.cached_property
    def keys(self) -> list[str]:
        return self.table.column("key").to_pylist()

    @functools.cached_property
    def _spans(self) -> list[tuple[int, int]]:
        """(offset, length) of every image."""
        columns = (self.table.column(name).to_pylist() for name in ("offset", "length"))
        return list(zip(*columns, strict=True))

    @functools.cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of every upright image, pixels."""
        columns = (self.table.column(name).to_pylist() for name in ("width", "height"))
        return list(zip(*columns, strict=True))

    def __len__(self) -> int:
        return len(self.keys)

    def row(self, index: int) -> ImageRow:
        return ImageRow(**self.table.slice(index, 1).to_pylist()[0])

    def download(self, share: float) -> None:
        """Fetch a remote tar as `StoredFile.download` does, else each `read` fetches one image."""
        self.tar.download(share)

    def read(self, index: int) -> bytes:
        """Return the bytes of image `index`. Raises DataError if the tar is missing or shorter than its index says.

        The tar is opened for each image, which takes ten microseconds: with thousands of shards, tars left open would
        use up the file handles of the process.
        """
        offset, length = self._spans[index]
        try:
            data = self.tar.read(offset, length)
        except OSError as error:
            raise_shortage(error, self.tar)
            raise DataError(f"{self.tar}: can't be read ({error.strerror}): image {self.keys[index]}.") from error
        if len(data) != length:
            raise DataError(f"{self.tar}: cut short: image {self.keys[index]} needs bytes that are not there.")
        return data

    def read_original(self, index: int, dataset: str) -> bytes:
        """Return the bytes of image `index` as they were in its set `dataset`; a resized image has others.

        Raises DataError as `read` does, or if they do not have the hash that the index says.
        """
        data, row = self.read(index), self.row(index)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise DataError(
                f"{self.tar}: image {row.key} is damaged in it. `must run` with --force data.{dataset} reads "
                "everything from the source again."
            )
        return data


class ImageStore:
    """The image shards of one split of a set, in order."""

    def __init__(self, shards: Sequence[ImageShard]) -> None:
        self.shards = list(shards)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)
