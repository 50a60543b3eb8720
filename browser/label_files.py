"""Read label files of any task, in parts. All raise DataError for a file that is damaged, or whose columns are not its
task's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

import tasks
from browser.tables import TYPES, Store
from pipeline.storage.root import StoredFile
from pipeline.stores.labels import Label, Row, Value, check_statuses, explain_label_errors, open_labels

T = TypeVar("T")


def read_scalars(file: StoredFile) -> tuple[Label, pa.Table]:
    """Return how a label file's labels are read, and its columns that are small or that `class_amounts` reads."""

    def read(parquet: pq.ParquetFile, label: Label) -> tuple[Label, pa.Table]:
        wanted = {"status", "reason", *label.amount_columns}
        names = [field.name for field in parquet.schema_arrow if field.type in TYPES or field.name in wanted]
        return label, parquet.read(names)

    label, table = _open(file, read)
    check_statuses(table, file)
    return label, table


def read_row_group(file: StoredFile, row: int) -> tuple[range, pa.Table]:
    """Read the row group of a row; return it behind the numbers of its rows. Raises KeyError if there is none."""

    def read(parquet: pq.ParquetFile, label: Label) -> tuple[range, pa.Table]:
        start = 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if row < start + count:
                return range(start, start + count), parquet.read_row_group(group)
            start += count
        raise KeyError(row)

    return _open(file, read)


def read_rows(file: StoredFile) -> list[Row]:
    """Return all rows of a label file."""
    return _open(file, lambda parquet, label: parquet.read().to_pylist())


def _open(file: StoredFile, reader: Callable[[pq.ParquetFile, Label], T]) -> T:
    return open_labels(file, lambda parquet: reader(parquet, tasks.label_of_file(parquet.schema_arrow, file)))


def decode_row(store: Store, row: Row, threshold: float) -> Value:
    """Return the label in a row. Raises DataError, with key and store, if it is damaged."""
    with explain_label_errors(store.name, row["key"]):
        return store.label.decode(row, threshold)
