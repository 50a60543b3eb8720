"""Parquet files with the bytes of images, as Hugging Face datasets write them: `image` = {bytes, path}, and `label`.

`image` may also be plain binary. A label is an index into the class names, or a name, or a list of either for images
with any number of classes; or each class has a column. The names come from the option `classes`, or from the schema's
metadata (a JSON list under "classes", or Hugging Face's features), or are the distinct names in the column. The split
comes from a column `split`, or else from a file's name or folder (`train-00000-of-00005.parquet`, `test/0.parquet`);
without either, a share is held out.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, DataError
from pipeline.sources import SourceRecord, Stamp
from pipeline.sources._classes import check_distinct
from pipeline.sources._detection import is_readable
from pipeline.sources._files import FileSource
from pipeline.sources._splits import Split, parse_split, split_by_hash, split_from_path
from pipeline.sources._tables import LabelColumns, TableConfig, classes_among, distinct_names
from pipeline.storage.json_text import load_json
from pipeline.storage.parquet import explain_parquet_errors, open_parquet
from pipeline.storage.path import StoragePath, require_exists, walk
from pipeline.storage.remote_file import open_file
from pipeline.stores.labels import LabelSpace

ROWS = 64
"""Rows in memory at a time."""
READ_AHEAD = 1 << 20
BYTES = (pa.binary(), pa.large_binary(), pa.binary_view())
TEXT = (pa.string(), pa.large_string(), pa.string_view())


class Config(TableConfig):
    """A Parquet file, or a folder of them."""

    kind: Literal["parquet"] = "parquet"
    image: str = "image"
    """Column of the images' bytes."""


class Source(FileSource):
    """Reads the files. Raises ConfigError if the path or a column does not exist; DataError on files of other kinds."""

    def __init__(self, config: Config) -> None:
        self.config = config
        path = require_exists(StoragePath.of(config.path), "path", "path")
        if path.is_folder():
            super().__init__(path, files=[file for file in walk(path) if file.suffix == ".parquet"])
        else:
            super().__init__(path.parent, files=[path])
        if not self.files:
            raise ConfigError(f"path: no .parquet files in {path}")

    @classmethod
    def detect(cls, path: str) -> Mapping[str, Any] | None:
        return {} if is_readable(lambda: cls(Config(path=path))) else None

    @functools.cached_property
    def _schemas(self) -> dict[StoragePath, pa.Schema]:
        """Checked schemas; columns that are not read may differ between files."""
        return {file: self._read_schema(file) for file in self.files}

    def _read_schema(self, file: StoragePath) -> pa.Schema:
        with _open_parquet(file) as parquet:
            schema: pa.Schema = parquet.schema_arrow
        for column in self.config.required_columns:
            if column not in schema.names:
                raise ConfigError(f"{file}: there is no column {column!r}; there are {', '.join(schema.names)}")
        for column in (self.config.image, *self.config.label_columns, "split"):
            if schema.names.count(column) > 1:
                raise ConfigError(f"{file}: there are {schema.names.count(column)} columns {column!r}; rename one")
        kind = schema.field(self.config.image).type
        in_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if (kind.field("bytes").type if in_struct else kind) not in BYTES:
            raise ConfigError(f"{file}: column {self.config.image!r} is {kind}, not binary or struct<bytes, path>")
        return schema

    @functools.cached_property
    def _labelled(self) -> dict[StoragePath, pa.Schema]:
        """Schemas of the files with labels; those of a test split may lack the column."""
        columns = set(self.config.label_columns)
        return {file: schema for file, schema in self._schemas.items() if columns <= set(schema.names)}

    @functools.cached_property
    def _labels(self) -> LabelColumns:
        config = self.config
        stated = config.labels or config.classes or self._stated_classes()
        classes = stated or self._distinct_labels()
        check_distinct(classes)
        several = any(_is_list(schema.field(config.label_columns[0]).type) for schema in self._labelled.values())
        return LabelColumns(config, classes, bool(config.labels or config.separator or several), not stated)

    def _stated_classes(self) -> tuple[str, ...]:
        """Return the class names in the metadata, which must be the same in all files."""
        stated = {_names_in(schema, self.config.label_columns[0]) for schema in self._labelled.values()}
        if len(stated) > 1:
            raise DataError(f"the files under {self.root} name different classes; state them as `classes`")
        return stated.pop()

    def _distinct_labels(self) -> tuple[str, ...]:
        """Return the distinct class names in the column of labels, sorted."""
        names: set[str] = set()
        (column,) = self.config.label_columns
        for file, schema in self._labelled.items():
            kind = schema.field(column).type
            entry = kind.value_type if pa.types.is_dictionary(kind) or _is_list(kind) else kind
            if (entry.value_type if pa.types.is_dictionary(entry) else entry) not in TEXT:
                raise ConfigError(f"{file}: labels are {kind}, and no class names stated; state them as `classes`")
            with _open_parquet(file) as parquet:
                for batch in _batches(parquet, [column]):
                    cells = pc.list_flatten(batch.column(0)) if _is_list(kind) else batch.column(0)
                    names.update(distinct_names(pc.unique(cells.cast(pa.string())).to_pylist(), self.config))
        return classes_among(names, self.config)

    def spaces(self) -> dict[str, LabelSpace]:
        return {self._labels.space.task: self._labels.space} if self._labelled else {}

    def read_records(self) -> Iterator[SourceRecord]:
        return itertools.chain.from_iterable(map(self._records_in, self.files))

    def _records_in(self, file: StoragePath) -> Iterator[SourceRecord]:
        wanted = dict.fromkeys((self.config.image, *self.config.label_columns, "split"))
        columns = [name for name in wanted if name in self._schemas[file].names]
        stamp, number = file.stamp(), 0
        with _open_parquet(file) as parquet:
            for batch in _batches(parquet, columns):
                for row in range(batch.num_rows):
                    yield self._record(f"{file.relative_to(self.root)}#{number}", batch.slice(row, 1), stamp)
                    number += 1

    def _record(self, name: str, row: pa.RecordBatch, stamp: Stamp) -> SourceRecord:
        read, split = functools.partial(_image_bytes, row.column(self.config.image)), self._row_split(name, row)
        if not self._labelled:
            return SourceRecord(name, split, read, stamp=lambda: stamp)
        cells = {key: row.column(key)[0].as_py() for key in self.config.label_columns if key in row.schema.names}
        return SourceRecord(name, split, read, functools.partial(self._labels.truth, cells, name), lambda: stamp)

    def _row_split(self, name: str, row: pa.RecordBatch) -> Split:
        if "split" in row.schema.names:
            stated = row.column("split")[0].as_py()
            if split := parse_split(str(stated)):
                return split
            raise DataError(f"{name}: split {stated!r} is none of train, val, test")
        return split_from_path(name.rsplit("#", 1)[0]) or split_by_hash(name, self.config.hold_out)

    def count(self) -> int:
        total = 0
        for file in self.files:
            with _open_parquet(file) as parquet:
                total += parquet.metadata.num_rows
        return total


@contextlib.contextmanager
def _open_parquet(file: StoragePath) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; Arrow's and the system's errors, until it is closed, become DataError."""
    with explain_parquet_errors(file, "Parquet file", "Repair it, or take it out."):
        source = file.path if file.local else open_file(file)
        # streams a row group page by page; by default Arrow would read all its images ahead into memory
        with open_parquet(source, buffer_size=READ_AHEAD, pre_buffer=False) as parquet:
            yield parquet


def _batches(parquet: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield all rows, ROWS at a time and of one row group: Arrow can't read lists of dictionary entries of several."""
    for group in range(parquet.num_row_groups):
        yield from parquet.iter_batches(ROWS, row_groups=[group], columns=columns)


def _image_bytes(cell: pa.Array) -> bytes:
    value: Any = cell[0].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    if data is None:
        path = value.get("path") if isinstance(value, dict) else None
        raise DataError(f"the row holds no bytes, only the path {path!r}" if path else "the row holds no image")
    return bytes(data)


def _names_in(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names that a schema's metadata states; () if it states none.

    Those of Hugging Face are a list, or a mapping from their numbers, as in the cards of sets.
    """
    metadata = schema.metadata or {}
    try:
        if b"classes" in metadata:
            return _as_names(load_json(metadata[b"classes"]))
        features = load_json(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        feature = features.get(label, {})
        # of a list, the feature of its entries
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        return _as_names(feature.get("names", ()))
    except (ValueError, TypeError, AttributeError, IndexError):
        return ()  # metadata with another meaning


def _as_names(stated: Any) -> tuple[str, ...]:
    """Return the names of a list, or of a mapping from 0, 1, ... as digits. Raises ValueError if there are none."""
    names = list(stated)
    if isinstance(stated, dict):
        names = [stated[str(number)] for number in range(len(stated)) if str(number) in stated]
    if isinstance(stated, str) or len(names) != len(stated):
        raise ValueError(f"{stated!r} are no names")
    check_distinct(names)
    return tuple(names)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
