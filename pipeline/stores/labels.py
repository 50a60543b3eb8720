"""Labels: what a task's label is, and the Parquet store that holds one teacher's labels shard by shard.

A label in memory is a `Value`: named arrays whose names, shapes, dtypes and units its task's `Label` class states.
A label on disk is a row of a Parquet file. There is one label file per image shard, with the same keys in the same
order, so that labels of any number of teachers line up beside the images without a search.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.errors import DataError
from pipeline.storage.atomic import publish, temporary_path
from pipeline.storage.root import PathOrFile, StoredFile

SCHEMA_VERSION = 1
ROW_GROUP = 256

T = TypeVar("T")
Value = dict[str, NDArray[Any]]
Row = dict[str, Any]
Box = tuple[float, float, float, float]
Status = Literal["ok", "none", "failed"]

COMMON = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False, metadata={"about": "first 16 hex digits of the image's sha256"}),
        pa.field("status", pa.string(), nullable=False, metadata={"about": "ok | none (no label) | failed"}),
        pa.field("reason", pa.string(), metadata={"about": "why the image has no label, else null"}),
        pa.field("confidence", pa.float32(), metadata={"about": "of the whole label, in [0, 1]"}),
    ]
)


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """What the numbers of a label mean: the task, its classes in order of their ids, and for depth the scale.

    `scale` is "metric" (metres) or "relative" (inverse depth up to an unknown scale and shift per image).
    """

    task: str
    classes: tuple[str, ...] = ()
    scale: Literal["metric", "relative"] = "metric"

    def to_json(self) -> dict[str, Any]:
        return {"task": self.task, "classes": list(self.classes), "scale": self.scale}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabelSpace:
        return cls(data["task"], tuple(data["classes"]), data["scale"])


class ClassAmounts(NamedTuple):
    """Classes in the rows of a label file, an entry for each class of each row: three arrays (N,)."""

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    amounts: NDArray[np.float32]
    """In [0, 1]."""


class Label(ABC):
    """What a task is on disk and to the eye. Subclasses live in `tasks/<task>/label.py` and know no torch.

    Geometry is in relative image coordinates: a box (x0, y0, x1, y1) with the image at (0, 0, 1, 1); a box may
    reach outside the image, and what lies there is unknown.
    """

    task: ClassVar[str]
    default_threshold: ClassVar[float] = 0.0
    """The smallest score that is kept unless a recipe says otherwise."""
    reading: ClassVar[str] = ""
    """How to read the drawing, where the picture itself does not say it."""
    unit: ClassVar[str] = "pixels"
    """What `count` counts; pixels are those of the label."""
    in_pixels: ClassVar[bool] = False
    """Whether values are coordinates in pixels, and not a raster that may be coarser than the image."""

    def __init__(self, space: LabelSpace) -> None:
        self.space = space

    counted: ClassVar[tuple[str, ...]] = ()
    """The columns that `class_amounts` reads; none for a task without classes."""
    scored: ClassVar[bool] = False
    """Whether the amounts of `class_amounts` are scores, which a threshold is about."""

    @abstractmethod
    def columns(self) -> pa.Schema:
        """The task's own columns: blobs, and the scalars beside them that SQL filters on."""

    @abstractmethod
    def encode(self, value: Value) -> Row:
        """Value -> row (with `confidence`); the bound on what is lost is stated in the class."""

    @abstractmethod
    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        """Row -> value. What scores below `threshold` becomes unknown; a score equal to it is kept."""

    def class_amounts(self, table: pa.Table) -> ClassAmounts:
        """Which classes are in each row of a label file, of which `table` has the columns `counted`, and how much of
        each: the best score of its objects, its share of the image or its probability.
        """
        return ClassAmounts(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))

    @abstractmethod
    def flip(self, value: Value) -> Value:
        """The label of the image mirrored left to right."""

    @abstractmethod
    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        """The label of the image region `box`, rescaled to `size` = (height, width) pixels."""

    @abstractmethod
    def draw(self, image: Image, value: Value) -> Image:
        """The image (RGB) with the label drawn on it, at the image's size."""

    @abstractmethod
    def describe(self, value: Value) -> str:
        """What the label says or how much it holds, in a few words; "" where only the drawing can tell."""

    @abstractmethod
    def describe_at(self, value: Value, place: tuple[float, float]) -> str:
        """What the label says of a `place` = (x, y) in [0, 1] of the image, in a few words; "" where nothing."""

    @abstractmethod
    def distance(self, one: Value, other: Value) -> float:
        """How far two labels of one image are apart, from 0 (they say the same) to 1; each task says by what. Where one
        of them says nothing at all they are 1 apart.
        """

    @abstractmethod
    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Per class, how much the row holds and how much of it `threshold` keeps: objects, pixels or images.

        Two arrays (K,); a task without classes has K = 1.
        """


def flattened(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The entries of a column of lists, with the row that each is of; a row without a list has none."""
    lists = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lists)), lengths), pc.list_flatten(lists).to_numpy(zero_copy_only=False)


def gather(grid: NDArray[Any], box: Box, size: tuple[int, int], fill: Any) -> NDArray[Any]:
    """Sample `grid` (H, W, ...) at the centres of a `size` raster laid over the relative `box`: nearest cell.

    Cells outside the image get `fill`. Nearest, because class ids, metres at an edge and unit vectors have no mean.
    """
    h, w = grid.shape[:2]
    ys = np.floor((box[1] + (np.arange(size[0]) + 0.5) / size[0] * (box[3] - box[1])) * h).astype(np.int64)
    xs = np.floor((box[0] + (np.arange(size[1]) + 0.5) / size[1] * (box[2] - box[0])) * w).astype(np.int64)
    outside_y, outside_x = (ys < 0) | (ys >= h), (xs < 0) | (xs >= w)
    out = grid[np.clip(ys, 0, h - 1)[:, None], np.clip(xs, 0, w - 1)[None, :]]
    if outside_y.any() or outside_x.any():
        out[outside_y] = fill
        out[:, outside_x] = fill
    return out


WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def cell(grid: NDArray[Any], place: tuple[float, float]) -> Any:
    """The entry of a raster (h, w, ...) over the image at a place (x, y) in [0, 1]."""
    x, y = (min(int(part * side), side - 1) for part, side in zip(place, (grid.shape[1], grid.shape[0]), strict=True))
    return grid[y, x]


def on_one_raster(one: NDArray[Any], other: NDArray[Any], fill: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two rasters over one image, both at the finer one's size: nearest cells."""
    height, width = (max(sides) for sides in zip(one.shape[:2], other.shape[:2], strict=True))
    return gather(one, WHOLE, (height, width), fill), gather(other, WHOLE, (height, width), fill)


def share_apart(apart: NDArray[Any], one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """The mean of `apart`, in [0, 1], over the cells that both know; 1 if one alone knows any, 0 if none does."""
    both = one & other
    return float(apart[both].mean()) if both.any() else float(one.any() != other.any())


def about_store(label: Label, maker: str, image_shard: str) -> dict[str, Any]:
    """The metadata every label file carries: its schema's version, label space, maker and image shard (sha256)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "space": label.space.to_json(),
        "maker": maker,
        "image_shard": image_shard,
    }


class LabelWriter:
    """Writes one label shard: rows in the order of the image shard's keys, visible under its name only when whole."""

    def __init__(self, path: Path, label: Label, about: Mapping[str, Any]) -> None:
        self.path, self.label = path, label
        self._part = temporary_path(path)
        schema = pa.schema([*COMMON, *label.columns()])
        self._schema = schema.with_metadata({"must": json.dumps(about, sort_keys=True)})
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows: list[Row] = []

    @functools.cached_property
    def _writer(self) -> pq.ParquetWriter:
        return pq.ParquetWriter(self._part, self._schema, compression="zstd", write_page_index=True)

    def add(self, key: str, value: Value | Row | None, status: Status = "ok", reason: str | None = None) -> None:
        """Append the row of image `key`: an encoded row, or None with the status that says why."""
        self._rows.append({"key": key, "status": status, "reason": reason, **(value or {})})
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def close(self) -> None:
        """Write what is left, sync, and rename to the final name."""
        self._flush()
        self._writer.close()
        publish(self._part, self.path)

    def discard(self) -> None:
        """Leave nothing half-written behind; after `close` there is nothing to do."""
        self._rows = []
        with contextlib.suppress(OSError):  # the footer may find no space, and need not
            self._writer.close()
        self._part.unlink(missing_ok=True)


class LabelShard:
    """One label file, read. Rows are decoded one by one; the blobs stay compressed in memory."""

    def __init__(self, file: StoredFile, label: Label) -> None:
        self.file, self.label = file, label
        self.table = read_labels(file)
        self.about = about_labels(self.table.schema, file)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def keys(self) -> list[str]:
        keys: list[str] = self.table.column("key").to_pylist()
        return keys

    def row(self, index: int) -> Row | None:
        """Row `index`, or None if the image has no label here."""
        row: Row = self.table.slice(index, 1).to_pylist()[0]
        return row if row["status"] == "ok" else None

    def value(self, index: int, threshold: float = 0.0) -> Value | None:
        """The label of row `index` with `threshold` applied, or None if the image has no label here.

        DataError names file and key of a label that is damaged.
        """
        row = self.row(index)
        try:
            return None if row is None else self.label.decode(row, threshold)
        except ValueError as error:
            key = self.keys[index]
            raise DataError(
                f"{self.file}: the label of {key} is damaged ({error}). Delete it and run again."
            ) from error

    def rows(self) -> Iterator[Row]:
        """All rows in order, a row group's worth in memory at a time."""
        for batch in self.table.to_batches(max_chunksize=ROW_GROUP):
            yield from batch.to_pylist()


def read_labels(file: StoredFile, columns: list[str] | None = None) -> pa.Table:
    """A label file's table, or some of its columns: then they alone are read. DataError names a file that is missing
    or damaged.
    """
    return open_labels(file, lambda parquet: parquet.read(columns), whole=columns is None)


def open_labels(file: StoredFile, reader: Callable[[pq.ParquetFile], T], whole: bool = False) -> T:
    """What `reader` makes of a label file, of which it reads little; or the `whole`, then one that is elsewhere comes
    here first. DataError names a file that is missing or damaged.
    """

    def read(source: PathOrFile) -> T:
        try:
            with pq.ParquetFile(source, memory_map=True) as parquet:  # `read_table` is several times as slow to begin
                return reader(parquet)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: not a readable label shard ({error}). Delete it and run again.") from error

    return file.load(read) if whole else file.scan(read)


def about_labels(schema: pa.Schema, origin: object) -> dict[str, Any]:
    """What a label file's schema says of it, as `about_store` made it. DataError if it is of another version."""
    about: dict[str, Any] = json.loads((schema.metadata or {}).get(b"must", b"{}"))
    version = about.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(f"{origin}: label schema version {version!r}; this version reads {SCHEMA_VERSION}.")
    return about


def check_joined(images: Sequence[str], labels: Sequence[str], shard: str, path: object) -> None:
    """Raise DataError, naming shard and key, unless both key lists are the same in the same order."""
    for position, (left, right) in enumerate(zip(images, labels, strict=False)):
        if left != right:
            raise DataError(f"{path}: row {position} holds key {right!r} where shard {shard} has {left!r}.")
    if len(images) != len(labels):
        first = (images[len(labels) :] or labels[len(images) :])[0]
        raise DataError(
            f"{path}: {len(labels)} rows for the {len(images)} images of shard {shard}; first unmatched key {first!r}."
        )
