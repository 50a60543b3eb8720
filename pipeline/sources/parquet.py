"""Parquet files with the bytes of images, as Hugging Face datasets write them: `image` = {bytes, path}, and `label`.

`image` may also be plain binary. A label is an index into the class names, or a name. The names come from the option
`classes`, or from the schema's metadata (a JSON list under "classes", or Hugging Face's features), or are the distinct
names in the column. The split comes from a column `split`, or else from a file's name or folder
(`train-00000-of-00005.parquet`, `test/0.parquet`); without either, a share is held out.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, DataError
from pipeline.recipe.source import Share, SourceConfig
from pipeline.sources import SourceRecord, Stamp, TrueLabels
from pipeline.sources._classes import check_distinct, class_index, one_hot_label
from pipeline.sources._files import FileSource
from pipeline.sources._splits import Split, parse_split, split_by_hash, split_from_path
from pipeline.storage.path import StoragePath, require_exists, walk
from pipeline.storage.remote_file import open_file
from pipeline.stores.labels import LabelSpace

ROWS = 64
"""Rows in memory at a time."""
READ_AHEAD = 1 << 20
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
TEXT = (pa.string(), pa.large_string(), pa.string_view())


class Config(SourceConfig):
    """A Parquet file, or a folder of them."""

    kind: Literal["parquet"] = "parquet"
    path: str
    """File, folder or URL."""
    image: str = "image"
    """Column of the images' bytes."""
    label: str | None = None
    """Column of the labels. By default `label`, if the file has it."""
    classes: tuple[str, ...] = ()
    """Names of the classes in order, if the file does not state them."""
    hold_out: Share = 0.2
    """The share of rows without a stated split that becomes `test`, by the hash of the row's name."""


class Source(FileSource):
    """Reads the files. Raises ConfigError if the path or a column does not exist; DataError on files of other kinds."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.label = config.label or "label"
        path = require_exists(StoragePath.of(config.path), "path", "path")
        if path.is_folder():
            super().__init__(path, files=[file for file in walk(path) if file.suffix == ".parquet"])
        else:
            super().__init__(path.parent, files=[path])
        if not self.files:
            raise ConfigError(f"path: no .parquet files in {path}")

    @functools.cached_property
    def _schemas(self) -> dict[StoragePath, pa.Schema]:
        """Checked schemas; columns that are not read may differ between files."""
        return {file: self._read_schema(file) for file in self.files}

    def _read_schema(self, file: StoragePath) -> pa.Schema:
        with _open_parquet(file) as parquet:
            schema: pa.Schema = parquet.schema_arrow
        for column in filter(None, (self.config.image, self.config.label)):
            if column not in schema.names:
                raise ConfigError(f"{file}: there is no column {column!r}; there are {', '.join(schema.names)}")
        kind = schema.field(self.config.image).type
        if not (kind in BYTES or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
            raise ConfigError(f"{file}: column {self.config.image!r} is {kind}, not binary or struct<bytes, path>")
        return schema

    @functools.cached_property
    def _labelled(self) -> dict[StoragePath, pa.Schema]:
        """Schemas of the files with labels; those of a test split may lack the column."""
        return {file: schema for file, schema in self._schemas.items() if self.label in schema.names}

    @functools.cached_property
    def _classes(self) -> tuple[str, ...]:
        classes = self.config.classes or self._stated_classes() or self._distinct_labels()
        check_distinct(classes)
        return classes

    def _stated_classes(self) -> tuple[str, ...]:
        """Return the class names in the metadata, which must be the same in all files."""
        stated = {_names_in(schema, self.label) for schema in self._labelled.values()}
        if len(stated) > 1:
            raise DataError(f"the files under {self.root} name different classes; state them as `classes`")
        return stated.pop()

    def _distinct_labels(self) -> tuple[str, ...]:
        """Return the distinct class names in the column of labels, sorted."""
        names: set[str] = set()
        for file, schema in self._labelled.items():
            kind = schema.field(self.label).type
            if (kind.value_type if pa.types.is_dictionary(kind) else kind) not in TEXT:
                raise ConfigError(f"{file}: labels are {kind}, and no class names stated; state them as `classes`")
            with _open_parquet(file) as parquet:
                for batch in parquet.iter_batches(columns=[self.label]):
                    names.update(pc.unique(batch.column(0).cast(pa.string())).drop_null().to_pylist())
        return tuple(sorted(names))

    def spaces(self) -> dict[str, LabelSpace]:
        return {"classification": LabelSpace("classification", self._classes)} if self._labelled else {}

    def read_records(self) -> Iterator[SourceRecord]:
        return itertools.chain.from_iterable(map(self._records_in, self.files))

    def _records_in(self, file: StoragePath) -> Iterator[SourceRecord]:
        columns = [name for name in (self.config.image, self.label, "split") if name in self._schemas[file].names]
        stamp, number = file.stamp(), 0
        with _open_parquet(file) as parquet:
            for batch in parquet.iter_batches(ROWS, columns=columns):
                for row in range(batch.num_rows):
                    yield self._record(f"{file.relative_to(self.root)}#{number}", batch.slice(row, 1), stamp)
                    number += 1

    def _record(self, name: str, row: pa.RecordBatch, stamp: Stamp) -> SourceRecord:
        label = row.column(self.label)[0].as_py() if self.label in row.schema.names else None
        read = functools.partial(_image_bytes, row.column(self.config.image))
        truth = functools.partial(self._truth, label)
        return SourceRecord(name, self._row_split(name, row), read, truth, lambda: stamp)

    def _row_split(self, name: str, row: pa.RecordBatch) -> Split:
        if "split" in row.schema.names:
            stated = row.column("split")[0].as_py()
            if split := parse_split(str(stated)):
                return split
            raise DataError(f"{name}: split {stated!r} is none of train, val, test")
        return split_from_path(name.rsplit("#", 1)[0]) or split_by_hash(name, self.config.hold_out)

    def _truth(self, label: int | str | None, size: tuple[int, int]) -> TrueLabels:
        if not self._labelled:
            return TrueLabels()
        if label is None or label == -1:  # what Hugging Face writes where a test set's labels are not public
            return TrueLabels(notes=["no label"])
        return one_hot_label(class_index(label, self._classes), len(self._classes), size)

    def count(self) -> int:
        total = 0
        for file in self.files:
            with _open_parquet(file) as parquet:
                total += parquet.metadata.num_rows
        return total


@contextlib.contextmanager
def _open_parquet(file: StoragePath) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; Arrow's and the system's errors, until it is closed, become DataError."""
    try:
        source = file.path if file.local else open_file(file)
        # streams a row group page by page; by default Arrow would read all its images ahead into memory
        with pq.ParquetFile(source, buffer_size=READ_AHEAD, pre_buffer=False) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error})") from error


def _image_bytes(cell: pa.Array) -> bytes:
    value: Any = cell[0].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        path = value.get("path") if isinstance(value, dict) else None
        raise DataError(f"the row holds no bytes, only the path {path!r}" if path else "the row holds no image")
    return bytes(data)


def _names_in(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names that a schema's metadata states; () if it states none."""
    metadata = schema.metadata or {}
    try:
        if b"classes" in metadata:
            return tuple(json.loads(metadata[b"classes"]))
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return tuple(features.get(label, {}).get("names", ()))
    except (ValueError, TypeError, AttributeError):
        return ()  # metadata with another meaning
