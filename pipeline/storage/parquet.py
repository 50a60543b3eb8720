"""Read Parquet files. What is damaged, missing, or not to be had just now is told by an error of this project."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, first_line
from pipeline.storage.errors import explain_read_errors
from pipeline.storage.shortage import raise_shortage

REPAIR = "`must artifacts verify --repair` deletes it, and the next run makes it again."


@contextlib.contextmanager
def explain_parquet_errors(path: object, what: str, remedy: str) -> Iterator[None]:
    """Turn errors from reading a Parquet file, which is to be `what`, into ours.

    DataError with the `remedy` for a damaged file, DataError or ConfigError if the system can't read it, Shortage if
    the machine is short of something.
    """
    try:
        with explain_read_errors(path):
            try:
                yield
            except OSError as error:
                if error.errno:  # the system's; Arrow's own have none
                    raise
                raise_shortage(error, path)
                raise DataError(f"{path}: {_not_readable(what, error)}. {remedy}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise_shortage(error, path)
        raise DataError(f"{path}: {_not_readable(what, error)}. {remedy}") from error


def _not_readable(what: str, error: Exception) -> str:
    return f"not a readable {what} ({first_line(error).rstrip('.')})"


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file of an artifact, or some of its columns. Raises DataError if it is damaged or lacks one of them."""
    with explain_parquet_errors(path, "Parquet file", REPAIR), pq.ParquetFile(path) as file:
        table = file.read(columns)  # `pq.read_table` takes five times as long over a small one
    missing = set(columns or ()) - set(table.column_names)
    if missing:
        raise DataError(f"{path}: has no column {min(missing)!r}. {REPAIR}")
    return table
