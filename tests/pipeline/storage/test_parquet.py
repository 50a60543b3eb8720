"""Parquet files that can't be read, or are not what was written."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, DataError, MustError, Shortage
from pipeline.storage.parquet import explain_parquet_errors, read_parquet, write_parquet


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "list.parquet"
    pq.write_table(pa.table({"key": ["a", "b"], "row": [1, 2]}), file)
    return file


def test_read_parquet_returns_all_or_some_columns(file: Path) -> None:
    assert read_parquet(file).to_pydict() == {"key": ["a", "b"], "row": [1, 2]}
    assert read_parquet(file, ["row"]).to_pydict() == {"row": [1, 2]}


def test_read_parquet_names_a_file_that_is_damaged_missing_or_without_a_column(file: Path) -> None:
    with pytest.raises(DataError, match=r"list\.parquet: has no column 'set'\. `must artifacts verify --repair`"):
        read_parquet(file, ["key", "set"])
    content = file.read_bytes()
    for place in range(4, len(content), 7):
        file.write_bytes(content[:place])
        with pytest.raises(DataError, match=r"list\.parquet: not a readable Parquet file .*verify --repair"):
            read_parquet(file)
    file.unlink()
    with pytest.raises(DataError, match=r"list\.parquet: there is no such file"):
        read_parquet(file)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), ConfigError),
        (OSError(errno.EIO, "Input/output error"), DataError),
        (PermissionError(errno.EACCES, "Permission denied"), DataError),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Shortage),
        (pa.ArrowMemoryError("malloc of size 9 failed"), Shortage),
    ],
)
def test_explain_parquet_errors_calls_nothing_damaged_that_the_system_cannot_read(
    error: Exception, kind: type[MustError]
) -> None:
    with pytest.raises(kind) as raised, explain_parquet_errors("x.parquet", "list", "Delete it."):
        raise error
    assert "Delete it" not in str(raised.value)


def test_write_parquet_makes_changed_values_damage(tmp_path: Path) -> None:
    file, table = tmp_path / "list.parquet", pa.table({"blob": [b"0123456789" * 9], "row": [7]})
    write_parquet(file, table, compression="none", use_dictionary=False, write_statistics=False)
    content = file.read_bytes()
    place = content.index(b"0123456789") + 3
    file.write_bytes(content[:place] + b"x" + content[place + 1 :])
    with pytest.raises(DataError, match=r"list\.parquet: not a readable Parquet file \(.*verify --repair"):
        read_parquet(file)


def test_read_parquet_reads_files_without_checksums(file: Path) -> None:
    assert pq.ParquetFile(file).metadata.num_rows == read_parquet(file).num_rows
