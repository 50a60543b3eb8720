"""Labels: the base class of every task's labels, and the Parquet store of one teacher's labels.

A label in memory is a `Value`: a dict of named arrays, described by its task's `Label` class. A label on disk is a row
of a Parquet file. Each image shard has one label file per teacher, with the same keys in the same order, so that labels
of any number of teachers line up with the images without a search.
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL.Image import Image

from pipeline.errors import DataError
from pipeline.storage.json_text import load_json
from pipeline.storage.parquet import explain_parquet_errors, open_parquet
from pipeline.storage.root import PathOrFile, StoredFile
from pipeline.stores.calibration import Calibration
from pipeline.stores.rasters import DENSE_STRIDE, Box
from pipeline.stores.skeleton import Skeleton
from pipeline.stores.space_fields import STATISTICS, are_of_regression, check_statistics

SCHEMA_VERSION = 2
ROW_GROUP = 256
"""Rows per row group."""
IGNORE = 65535
"""The class id of a segmentation label's unknown pixels."""
PROBABILITY = pa.field(
    "probability", pa.float32(), metadata={"about": "confidence, calibrated where that was possible"}
)
"""The column of tasks whose scores can be calibrated: the score of the whole label as a probability."""
APPLICABILITY = pa.field(
    "applicability",
    pa.float32(),
    metadata={"about": "share of the teacher's held-out images that are at least as unlike its training images"},
)
"""A column of labels that a teacher gave: in [0, 1], near 0 for images of another kind; null where it is not known."""
INAPPLICABLE = 0.05
"""Applicability below which an image counts as one of another kind, in warnings."""
REMEDY = "Delete it and run again."
PRESENT = 0.5
"""The least probability of a class that counts as present in a multi-label image."""

T = TypeVar("T")
Value = dict[str, NDArray[Any]]
Row = dict[str, Any]
Status = Literal["ok", "none", "failed"]
Layer = Literal["words", "outlines", "tint", "map"]
"""A label's part of a picture that shows several: words, outlines, a see-through tint, or a picture of its own."""

COMMON = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False, metadata={"about": "first 16 hex digits of the image's sha256"}),
        pa.field("status", pa.string(), nullable=False, metadata={"about": "ok | none (no label) | failed"}),
        pa.field("reason", pa.string(), metadata={"about": "why the image has no label, else null"}),
        pa.field("confidence", pa.float32(), metadata={"about": "of the whole label, in [0, 1]"}),
    ]
)
"""The columns of every label file, before the task's own."""


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """The meaning of the numbers in a label: the task, its K class names in order of their ids, and the scale of depth.

    `scale` is "metric" (metres) or "relative" (inverse depth up to an unknown scale and shift per image), `skeleton` is
    of keypoints. The other fields are of regression, whose classes are the channels of its arrays.
    """

    task: str
    classes: tuple[str, ...] = ()
    scale: Literal["metric", "relative"] = "metric"
    unit: str = ""
    """Of the numbers, as `m`."""
    aligned: bool = True
    """True for rasters over the image, False for arrays of another kind, such as the spectrogram of a sound."""
    mean: tuple[float, ...] = dataclasses.field(default=(), compare=False)
    """By channel, of the labels that a network learned; () for 0. It and `std` change no label's meaning."""
    std: tuple[float, ...] = dataclasses.field(default=(), compare=False)
    """By channel, the standard deviation; () for 1."""
    skeleton: Skeleton = dataclasses.field(default_factory=Skeleton)
    """The keypoints of each object."""

    def to_json(self) -> dict[str, Any]:
        stated = {"task": self.task, "classes": list(self.classes), "scale": self.scale}
        optional = {"unit": self.unit, "mean": list(self.mean), "std": list(self.std)}
        aligned = {} if self.aligned else {"aligned": False}
        skeleton = {"skeleton": self.skeleton.to_json()} if self.skeleton.points else {}
        return {**stated, **{name: each for name, each in optional.items() if each}, **aligned, **skeleton}

    @classmethod
    def from_json(cls, data: Any) -> LabelSpace:
        """Return the label space that `to_json` stated, whatever else is stated beside it.

        Raises DataError for anything else, and names a statistic that can't be.
        """
        match data:
            case {"task": str(task), "classes": [*classes], "scale": "metric" | "relative" as scale, **more}:
                if all(isinstance(name, str) for name in classes) and are_of_regression(more, len(classes)):
                    check_statistics(more)
                    fields: dict[str, Any] = {name: data[name] for name in ("unit", "aligned") if name in data}
                    fields |= {name: tuple(data[name]) for name in STATISTICS if name in data}
                    fields |= {"skeleton": Skeleton.from_json(data["skeleton"])} if "skeleton" in data else {}
                    return cls(task, tuple(classes), scale, **fields)
        raise DataError(f"{data!r:.80} is no label space, which has a task, a list of classes and a scale.")


class LabelOrigin(NamedTuple):
    """Who made a label: a set that has it as a true one, or the teacher that predicted it."""

    origin: Literal["true", "pseudo"]
    origin_name: str
    """Name of the set, of the teacher, or of a student's head as in `student-things`."""


class ClassAmounts(NamedTuple):
    """The classes in the rows of a label file: three arrays (N,), with an entry for each class of each row."""

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    amounts: NDArray[np.float32]
    """In [0, 1]."""


class Label(ABC):
    """Labels of one task over one label space: how they are stored, cropped, flipped, compared and drawn.

    To add a task, subclass this as `TaskLabel` in `tasks/<task>/label.py`, without importing torch. Its docstring names
    the arrays of a `Value` with shape, dtype, unit and range, the entry that means unknown, and what storing loses.
    Conventions for all tasks:

    * A dense label is a raster (h, w) or (h, w, C) over the whole image, at any resolution, with row 0 at the top.
    * `box` is (x0, y0, x1, y1) relative to the image, which is (0, 0, 1, 1). It may reach outside the image; what lies
      there is unknown.
    * `size` is (height, width) in pixels, `point` (x, y) in [0, 1] of the image.
    * `threshold` is a probability in [0, 1]. Values hold the scores as the teacher gave them; `calibrate` tells the
      probabilities that they mean. Without a calibration a score is its own probability.
    * Methods return new values and leave their arguments as they are.

    >>> label = tasks.label(LabelSpace("depth"))  # the `TaskLabel` of tasks/depth/label.py
    >>> label.decode(label.encode({"depth": np.ones((6, 8), np.float32)}))["depth"].shape
    (6, 8)
    """

    can_be_live: ClassVar[bool] = False
    """A teacher's raw output is a label as it comes: `Task.live_target` makes a target of it on the device."""
    can_be_weighted: ClassVar[bool] = True
    """The loss can count some images' labels more than others'."""
    task: ClassVar[str]
    """Name of the task: the name of its folder."""
    default_threshold: ClassVar[float] = 0.0
    """Smallest score that is kept unless a recipe says otherwise."""
    legend: ClassVar[str] = ""
    """How to read the drawing, where the picture does not explain itself."""
    layer: ClassVar[Layer] = "words"
    """The part of the label in a picture that several labels share; `describe` has the words."""
    unit: ClassVar[str] = "pixels"
    """Unit of `count`, in the plural; pixels are those of the label."""
    stride: ClassVar[int] = DENSE_STRIDE
    """Pixels of a network's input per cell of the rasters that it learns: 4, 8, 16 or 32."""
    uses_pixels: ClassVar[bool] = False
    """True if values are coordinates in pixels, False if they are rasters, which may be coarser than the image."""
    amount_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that `class_amounts` reads; none for a task without classes."""
    has_scores: ClassVar[bool] = False
    """True if the amounts of `class_amounts` are scores that thresholds apply to."""

    partial_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that `known_classes` reads; none for a task whose labels are of all classes."""

    def __init__(self, space: LabelSpace, calibration: Calibration | None = None) -> None:
        self.space, self.calibration = space, calibration

    def target_side(self, side: int) -> int:
        """Return the `size` to crop to for a network's square input of `side` pixels: pixels, or cells of a raster."""
        return side if self.uses_pixels else side // self.stride

    @property
    def clear_classes(self) -> tuple[str, ...]:
        """The classes that `draw_plain` leaves without color."""
        return ()

    @property
    def can_be_calibrated(self) -> bool:
        """True for a task that has the column PROBABILITY."""
        return PROBABILITY.name in self.columns().names

    def calibrate(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return the probabilities of scores, in their shape and dtype: the scores themselves without a calibration."""
        return scores if self.calibration is None else self.calibration(scores)

    def calibrated_as(self, metadata: Mapping[str, Any]) -> Self:
        """Return these labels with the calibration that a label file's `store_metadata` states."""
        return type(self)(self.space, Calibration.from_json(metadata["calibration"]))

    @abstractmethod
    def columns(self) -> pa.Schema:
        """Return the task's own columns, blobs and scalars for SQL; metadata `about` states dtype, shape and unit."""

    @abstractmethod
    def encode(self, value: Value) -> Row:
        """Return the row of a value: an entry for each of `columns`, and `confidence` (float in [0, 1])."""

    @abstractmethod
    def decode(self, row: Row, threshold: float = 0.0) -> Value:
        """Return the value of a row. What is less probable than `threshold` becomes unknown; what is equal is kept.

        Raises ValueError if the row is damaged: a blob that can't be read, classes that the label space does not have.
        """

    def check_class_ids(self, ids: NDArray[Any]) -> None:
        """Raise ValueError unless all of these are ids of classes of the label space."""
        wrong = ids[~((ids >= 0) & (ids < len(self.space.classes)))]  # NaN too: an entry that is null
        if wrong.size:
            raise ValueError(f"class {wrong.flat[0]} of {len(self.space.classes)}")

    def class_amounts(self, table: pa.Table) -> ClassAmounts:
        """Return the classes in each row of a label file, of which `table` has the `amount_columns`.

        The amount is the probability of the class, or of the most probable of its objects, or its share of the image.
        """
        return ClassAmounts(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))

    def known_classes(self, table: pa.Table) -> NDArray[np.bool_]:
        """Return for each class True if a row of a label file, of which `table` has the `partial_columns`, is about it.

        A label of a class says that it is there, or that it is not.
        """
        return np.ones(len(self.space.classes), np.bool_)

    @abstractmethod
    def flip(self, value: Value) -> Value:
        """Return the label of the image mirrored left to right. Flipping twice is the identity."""

    @abstractmethod
    def crop(self, value: Value, box: Box, size: tuple[int, int]) -> Value:
        """Return the label of the image region `box`, resized to `size` = (height, width) pixels."""

    @abstractmethod
    def draw(self, image: Image, value: Value) -> Image:
        """Return a copy of the RGB `image` with the label drawn on it, at the image's size."""

    def draw_plain(self, image: Image, value: Value, dashed: bool = False) -> Image:
        """Return what `draw` does, for a picture that several labels share: without captions, true labels `dashed`.

        Of a label whose `layer` is "map" only the drawing counts, which lies beside the picture.
        """
        return self.draw(image, value)

    @abstractmethod
    def describe(self, value: Value) -> str:
        """Return the label in a few words ("3 boxes"), or "" if only the drawing can tell."""

    @abstractmethod
    def describe_at(self, value: Value, point: tuple[float, float]) -> str:
        """Return in a few words what the label says at `point` = (x, y) in [0, 1] of the image, "" where nothing."""

    @abstractmethod
    def distance(self, one: Value, other: Value) -> float:
        """Return how far apart two labels of one image are, 0 (equal) to 1; 1 if just one of them says nothing."""

    @abstractmethod
    def count(self, row: Row, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how much of each class a row holds, and how much of it `threshold` keeps: two arrays (K,) in `unit`.

        A task without classes has K = 1.
        """


class LabelShard:
    """One label file in memory. Rows are decoded one by one; blobs stay compressed.

    `label` has the calibration that the file states, whatever the given one has. Raises DataError if the file's columns
    are not those of `label`.
    """

    def __init__(self, file: StoredFile, label: Label) -> None:
        self.file = file
        self.table = read_labels(file)
        self.metadata = read_metadata(self.table.schema, file)
        self.label = label.calibrated_as(self.metadata)
        check_columns(self.table.schema, label, file)
        check_statuses(self.table, file)

    @property
    def keys(self) -> list[str]:
        return self.table.column("key").to_pylist()

    def row(self, index: int) -> Row | None:
        """Return row `index`, or None if the image has no label."""
        row: Row = self.table.slice(index, 1).to_pylist()[0]
        return row if row["status"] == "ok" else None

    def value(self, index: int, threshold: float = 0.0, applicability: float = 0.0) -> Value | None:
        """Return the label of row `index` with `threshold` applied; None if the image has no label, or one of less
        `applicability`.

        Raises DataError, with file and key, if the label is damaged.
        """
        row = self.row(index)
        if row is None or not is_applicable(row, applicability):
            return None
        with explain_label_errors(self.file, row["key"]):
            return self.label.decode(row, threshold)

    def rows(self) -> Iterator[Row]:
        """Yield all rows in order, with one row group of them as Python objects at a time."""
        for batch in self.table.to_batches(max_chunksize=ROW_GROUP):
            yield from batch.to_pylist()


def is_applicable(row: Row, least: float) -> bool:
    """Return True unless a label's applicability is known and below `least`."""
    known = row.get(APPLICABILITY.name)
    return known is None or known >= least


def read_labels(file: StoredFile, columns: list[str] | None = None) -> pa.Table:
    """Read a label file, or only some of its columns. Raises DataError if it is missing or damaged."""
    table = open_labels(file, lambda parquet: parquet.read(columns), whole=columns is None)
    missing = set(columns or ()) - set(table.column_names)
    if missing:
        raise DataError(f"{file}: has no column {min(missing)!r}. {REMEDY}")
    return table


def open_labels(file: StoredFile, reader: Callable[[pq.ParquetFile], T], whole: bool = False) -> T:
    """Return `reader(parquet_file)` for a label file. Raises DataError if it is missing or damaged.

    Of a remote file only what is read is fetched; `whole` fetches all of it first.
    """

    def read(source: PathOrFile) -> T:
        with (
            explain_parquet_errors(file, "label shard", REMEDY),
            open_parquet(source, memory_map=True) as parquet,  # `read_table` takes far longer to start
        ):
            return reader(parquet)

    return file.load(read) if whole else file.scan(read)


def read_metadata(schema: pa.Schema, file: object) -> dict[str, Any]:
    """Return a label file's `store_metadata`. Raises DataError if it is damaged, or another version wrote it."""
    try:
        metadata: dict[str, Any] = load_json((schema.metadata or {}).get(b"must", b"{}"))
        version = metadata.get("schema_version")
        if version == SCHEMA_VERSION:
            LabelSpace.from_json(metadata["space"])
            Calibration.from_json(metadata["calibration"])
            return metadata
    except (ValueError, AttributeError, KeyError, TypeError, DataError) as error:
        raise DataError(f"{file}: its metadata is damaged ({error}). {REMEDY}") from error
    raise DataError(
        f"{file}: label schema version {version!r}; this version reads {SCHEMA_VERSION}. The next `must run` or "
        "`must label` of its recipe makes it again."
    )


def check_columns(schema: pa.Schema, label: Label, file: object) -> None:
    """Raise DataError unless a label file has the columns of `label`, of their types."""
    for field in (*COMMON, *label.columns()):
        found = schema.field(field.name) if field.name in schema.names else None
        if found is None or not found.equals(field):
            raise DataError(f"{file}: its column {field.name!r} is {found and found.type}, not {field.type}. {REMEDY}")


def check_statuses(table: pa.Table, file: object) -> None:
    """Raise DataError unless each row's status is one of `Status`."""
    others = set(table.column("status").unique().to_pylist()) - set(get_args(Status))
    if others:
        raise DataError(f"{file}: has the status {min(others)!r:.40}, which is none of {get_args(Status)}. {REMEDY}")


@contextlib.contextmanager
def explain_label_errors(file: object, key: str | None = None) -> Iterator[None]:
    """Raise DataError, with the file and the image's key, for what a `Label` raises on damaged rows."""
    try:
        yield
    except (ValueError, TypeError, IndexError, OverflowError) as error:  # TypeError: an entry that is null
        damaged = f"the label of {key} is" if key else "its labels are"
        raise DataError(f"{file}: {damaged} damaged ({error}). {REMEDY}") from error
