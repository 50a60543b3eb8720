"""Write label files: one per teacher and image shard, complete or not at all."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.atomic import commit, temporary_path
from pipeline.storage.parquet import parquet_writer
from pipeline.stores.labels import COMMON, ROW_GROUP, SCHEMA_VERSION, Label, Row, Status


def store_metadata(label: Label, maker: str, image_shard: str) -> dict[str, Any]:
    """Return the metadata of a label file: schema version, label space, calibration, maker, sha256 of image shard."""
    return {
        "schema_version": SCHEMA_VERSION,
        "space": label.space.to_json(),
        "calibration": label.calibration and label.calibration.to_json(),
        "maker": maker,
        "image_shard": image_shard,
    }


class LabelWriter:
    """Writes one label shard, row by row in the order of the image shard; the file appears when it is complete.

    `more`: columns besides those of all labels and the task's own.

    >>> writer = LabelWriter(path, label, store_metadata(label, maker, shard.sha256))
    >>> writer.add(key, label.encode(value))  # for every key of the shard, then writer.close()
    """

    def __init__(self, path: Path, label: Label, metadata: Mapping[str, Any], more: Sequence[pa.Field] = ()) -> None:
        self.path, self.label = path, label
        self._temporary = temporary_path(path)
        schema = pa.schema([*COMMON, *more, *label.columns()])
        self._schema = schema.with_metadata({"must": json.dumps(metadata, sort_keys=True)})
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows: list[Row] = []

    @functools.cached_property
    def _writer(self) -> pq.ParquetWriter:
        """The open file. On a full disk it can't be opened, and `discard` has to delete what is there."""
        return parquet_writer(self._temporary, self._schema, compression="zstd", write_page_index=True)

    def add(self, key: str, row: Row | None, status: Status = "ok", reason: str | None = None) -> None:
        """Append the encoded row of image `key`, or None with the status and reason of an image without a label."""
        self._rows.append({"key": key, "status": status, "reason": reason, **(row or {})})
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def close(self) -> None:
        """Write the remaining rows, sync, and rename the file to its final name."""
        self._flush()
        self._writer.close()
        commit(self._temporary, self.path)

    def discard(self) -> None:
        """Delete an unfinished file. Does nothing after `close`."""
        with contextlib.suppress(OSError):  # on a full disk the footer can't be written, and need not be
            self._writer.close()
        self._temporary.unlink(missing_ok=True)
