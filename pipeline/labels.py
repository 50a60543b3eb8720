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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.errors import DataError
from pipeline.roots import Source, StoredFile
from pipeline.whole import part_of, publish

SCHEMA_VERSION = 1
ROW_GROUP = 256
STORE_DIGITS = 12
"""Of a teacher's digest, in the name of the folder with its labels."""

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

    @abstractmethod
    def columns(self) -> pa.Schema:
        """The task's own columns: blobs, and the scalars beside them that SQL filters on."""

    @abstractmethod
    def encode(self, value: Value) -> Row:
        """Value -> row (with `confidence`); the bound on what is lost is stated in the class."""

    @abstractmethod
    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        """Row -> value. What scores below `threshold` becomes unknown; a score equal to it is kept."""

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
    def say(self, value: Value) -> str:
        """What the label says or how much it holds, in a few words; "" where only the drawing can tell."""

    @abstractmethod
    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Per class, how much the row holds and how much of it `threshold` keeps: objects, pixels or images.

        Two arrays (K,); a task without classes has K = 1.
        """


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


def about_store(label: Label, maker: str, image_shard: str) -> dict[str, Any]:
    """The metadata every label file carries: its schema's version, label space, maker and image shard (sha256)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "space": label.space.to_json(),
        "maker": maker,
        "image_shard": image_shard,
    }


def store_name(teacher: str, digest: str) -> str:
    """The folder below `labels/` that holds the labels of one version of a teacher, given its artifact's digest."""
    return f"{teacher}-{digest[:STORE_DIGITS]}"


class LabelWriter:
    """Writes one label shard: rows in the order of the image shard's keys, visible under its name only when whole."""

    def __init__(self, path: Path, label: Label, about: Mapping[str, Any]) -> None:
        self.path, self.label = path, label
        self._part = part_of(path)
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
        self.about: dict[str, Any] = json.loads((self.table.schema.metadata or {}).get(b"must", b"{}"))
        version = self.about.get("schema_version")
        if version != SCHEMA_VERSION:
            raise DataError(f"{file}: label schema version {version!r}; this version reads {SCHEMA_VERSION}.")

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

    def table(source: Source) -> pa.Table:
        try:
            return pq.read_table(source, columns=columns, memory_map=True)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{file}: not a readable label shard ({error}). Delete it and run again.") from error

    return file.load(table) if columns is None else file.scan(table)


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
