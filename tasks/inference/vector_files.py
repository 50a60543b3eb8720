"""Embed files of images, however many, and write their vectors as Parquet or as an array of NumPy."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.storage.atomic import atomic_write, check_new_file
from pipeline.storage.parquet import parquet_writer
from pipeline.storage.shortage import explain_shortage
from tasks.inference.files import FilesRequest, check_any, image_key
from tasks.inference.model import TrainedModel

ROWS = 1024
"""Vectors that are written at once."""
VECTOR_FORMS = (".parquet", ".npy")
Rows = list[tuple[str, str, NDArray[np.float32]]]
"""Names, keys and vectors."""


def check_vector_file(out: Path) -> None:
    """Raise ConfigError unless a file of vectors can have this name and is not there yet, nor that of its names."""
    if out.suffix not in VECTOR_FORMS:
        raise ConfigError(f"OUT {str(out)!r}: end it in {' or '.join(VECTOR_FORMS)}, which says its format.")
    check_new_file(out, *([_names_file(out)] if out.suffix == ".npy" else []))


def _names_file(out: Path) -> Path:
    """Return the file with the names of the images whose vectors are in `out`."""
    return out.with_suffix(".csv")


def embed_files(model: TrainedModel, request: FilesRequest, out: Path) -> int:
    """Write the vectors of images to a file, whole or not at all; return how many.

    `*.parquet` has the columns `name`, `key` (first 16 hex digits of the file's sha256) and `vector`; `*.npy` the
    vectors, float32 (N, D), with a CSV file of their names and keys beside it. Raises ConfigError for another suffix,
    for a model that tells no vectors or a file that can't be written or is there already, DataError if not one image
    can be read.
    """
    check_vector_file(out)
    width = model.width
    try:
        with explain_shortage("embed", out):
            out.parent.mkdir(parents=True, exist_ok=True)
            rows = _vector_rows(model, request)
            return (_write_parquet if out.suffix == ".parquet" else _write_npy)(out, width, rows)
    except OSError as error:
        raise ConfigError(f"{out}: can't be written ({error.strerror or error}). Name another file.") from error


def _vector_rows(model: TrainedModel, request: FilesRequest) -> Iterator[Rows]:
    """Yield lists of rows, none of them empty."""
    problems, count, rows = request.problems, 0, Rows()
    for found in model.stream_vectors(request.counted("embed"), request.batch, problems.add):
        count += 1
        rows.append((found.image.source.name, image_key(found.image), found.vector))
        if len(rows) == ROWS:
            yield rows
            rows = []
    check_any(count > 0, problems)
    if rows:
        yield rows


def _write_parquet(out: Path, width: int, chunks: Iterator[Rows]) -> int:
    schema = pa.schema([("name", pa.string()), ("key", pa.string()), ("vector", pa.list_(pa.float32(), width))])
    count = 0
    with atomic_write(out) as part, parquet_writer(part, schema, compression="zstd") as writer:
        for rows in chunks:
            names, keys, vectors = zip(*rows, strict=True)
            flat = pa.array(np.concatenate(vectors), pa.float32())
            columns = [pa.array(names), pa.array(keys), pa.FixedSizeListArray.from_arrays(flat, width)]
            writer.write_table(pa.table(columns, schema))
            count += len(rows)
    return count


def _write_npy(out: Path, width: int, chunks: Iterator[Rows]) -> int:
    """Write the names first: where there are vectors, there are their names."""
    count = 0
    with (
        atomic_write(out) as part,
        open(part, "wb") as vectors,
        atomic_write(_names_file(out)) as names,
        open(names, "w", encoding="utf-8", newline="") as file,
    ):
        listing = csv.writer(file)
        listing.writerow(("name", "key"))
        _write_header(vectors, 0, width)
        for rows in chunks:
            listing.writerows((name, key) for name, key, _ in rows)
            vectors.write(np.stack([vector for *_, vector in rows]).astype("<f4").tobytes())
            count += len(rows)
        vectors.seek(0)
        _write_header(vectors, count, width)
    return count


def _write_header(file: Any, rows: int, width: int) -> None:
    """Write the header of a file of `rows` vectors; NumPy leaves room in it for any number of rows."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
