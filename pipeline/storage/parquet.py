"""Read and write Parquet files, with a checksum of each page.

What is damaged, missing, or not to be had just now is told by an error of this project.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """Open a file whose pages are checked as they are read, where it has checksums; it raises the library's errors."""
    return pq.ParquetFile(source, page_checksum_verification=True, **options)


def parquet_writer(target: Any, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """Return the library's writer of a file, which is to have a checksum for each page."""
    return pq.ParquetWriter(target, schema, write_page_checksum=True, **options)


def write_parquet(target: Any, table: pa.Table, **options: Any) -> None:
    """Write a file of one table."""
    with parquet_writer(target, table.schema, **options) as writer:
        writer.write_table(table)


def _not_readable(what: str, error: Exception) -> str:
    return f"not a readable {what} ({first_line(error).rstrip('.')})"


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file of an artifact, or some of its columns. Raises DataError if it is damaged or lacks one of them."""
    with explain_parquet_errors(path, "Parquet file", REPAIR), open_parquet(path) as file:
        table = file.read(columns)  # `pq.read_table` takes five times as long over a small one
    missing = set(columns or ()) - set(table.column_names)
    if missing:
        raise DataError(f"{path}: has no column {min(missing)!r}. {REPAIR}")
    return table
