"""DuckDB tables of all small columns of images and labels, which the page filters by.

images      a row per image: its set, split, shard and row, key, size, source
<store>     a row per image that a label store covers: status, confidence, applicability where it is known, the task's
            scalar columns, and `classes` with how much of each the label holds (`amounts`)
failures    why images have no label
rejected    images and labels that were rejected by hand

`id` joins them all. It is a row of `images`: an image that is in two sets has two of them, and one key.

Blobs stay in their files. The tables are in a temporary file of the server, of which only a part is in memory: a store
of millions of images fits.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from browser.catalogue import CataloguedShard
from pipeline.stores.labels import APPLICABILITY, Label, explain_label_errors

MEMORY = "150MB"
BATCH_ROWS = 20_000
"""Rows are inserted so many at a time, as each insert has a fixed cost."""
RESERVED = {"images", "image_rows", "shards", "failures", "rejections", "rejected", "newest_teachers", "unlabelled"}
"""Names of tables that no store may have as its second name."""
TYPES = {pa.int32(): "INTEGER", pa.float32(): "FLOAT"}
"""Types of the columns of label files that are in the tables."""
SETTINGS = {
    "enable_external_access": False,  # no query reaches a file or the network
    "python_enable_replacements": False,  # nor a variable of this program
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
SCHEMA = """
CREATE TYPE status AS ENUM ('ok', 'none', 'failed');
CREATE TABLE shards (shard INTEGER, "set" VARCHAR, split VARCHAR, name VARCHAR, sha256 VARCHAR, images INTEGER,
    teachers INTEGER);
CREATE TABLE newest_teachers (store VARCHAR);
CREATE TABLE image_rows (id INTEGER, hash UBIGINT, shard INTEGER, "row" INTEGER, width INTEGER, height INTEGER,
    bytes INTEGER, source VARCHAR);
CREATE TABLE failures (id INTEGER, store VARCHAR, status status, reason VARCHAR);
CREATE TABLE rejections (hash UBIGINT, store VARCHAR, reason VARCHAR, time TIMESTAMP);
CREATE VIEW rejected AS SELECT id, printf('%016x', hash) AS key, store, reason, time
    FROM rejections LEFT JOIN image_rows USING (hash);
CREATE VIEW unlabelled AS SELECT id FROM failures JOIN image_rows USING (id) JOIN shards USING (shard)
    WHERE store IN (FROM newest_teachers) GROUP BY id, teachers HAVING count(*) >= teachers;
CREATE VIEW images AS SELECT id, printf('%016x', hash) AS key, "set", split, name AS shard, "row", width, height,
    bytes, source FROM image_rows JOIN shards USING (shard);
"""


@dataclasses.dataclass(frozen=True)
class Store:
    """A label store that has a table: its name, and how its labels are read."""

    name: str
    label: Label
    has_applicability: bool = False
    """True if its labels tell whether an image is of the kind that the teacher knows."""

    @property
    def columns(self) -> dict[str, str]:
        """The table's columns and their types, without `id`."""
        fields = [field for field in self.label.columns() if field.type in TYPES]
        scalars = {field.name: TYPES[field.type] for field in fields}
        classes = {"classes": f"{self.class_type}[]", "amounts": "FLOAT[]"} if self.label.amount_columns else {}
        applicability = {APPLICABILITY.name: "FLOAT"} if self.has_applicability else {}
        return {"status": "status", "confidence": "FLOAT", **applicability, **scalars, **classes}

    @functools.cached_property
    def class_names(self) -> list[str]:
        """The names of its classes; those that occur twice with their number."""
        classes = self.label.space.classes
        repeated = {name for name, count in collections.Counter(classes).items() if count > 1}
        return [f"{name} #{number}" if name in repeated else name for number, name in enumerate(classes)]

    @property
    def table(self) -> str:
        """The table's name, quoted for SQL."""
        return quoted(self.name)

    @property
    def class_type(self) -> str:
        """The SQL type of class names."""
        return quoted(f"classes of {self.name}")


class Tables:
    """The tables, read and written from any thread. Images and labels are added by one, that of `Loading`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="must-browse-", ignore_cleanup_errors=True)
        file = Path(self._folder.name) / "tables.duckdb"
        self._database = duckdb.connect(file, config={"memory_limit": MEMORY, **SETTINGS})
        file.unlink()  # an open file stays until the process ends, however it ends
        self._database.execute(SCHEMA)
        self._lock = threading.Lock()
        self.version = 0
        """Rises after each change of a row."""
        self._next_image, self._next_shard = 0, 0
        self._buffered: dict[str, list[pa.Table]] = collections.defaultdict(list)

    def close(self) -> None:
        """Close the database and remove its file. No query may follow."""
        self._database.close()
        self._folder.cleanup()

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query, from any thread."""
        with self.cursor() as cursor:
            rows: list[tuple[Any, ...]] = cursor.execute(sql, parameters).fetchall()
            return rows

    def query_ids(self, sql: str, parameters: Sequence[Any]) -> NDArray[np.int32]:
        """Run a query with one column of whole numbers."""
        with self.cursor() as cursor:
            [column] = cursor.execute(sql, parameters).fetchnumpy().values()
            return np.asarray(column, np.int32)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Open a connection for the caller alone; as a context manager it closes itself."""
        return self._database.cursor()

    def add_images(self, found: CataloguedShard) -> range:
        """Add the rows of an image shard; return the ids of its images."""
        index = found.shard.columns("key", "width", "height", "length", "source")
        count, shard = len(index), self._next_shard
        ids = range(self._next_image, self._next_image + count)
        columns = {
            "id": pa.array(ids, pa.int32()),
            "hash": pa.array([int(key, 16) for key in index.column("key").to_pylist()], pa.uint64()),
            "shard": pa.array(np.full(count, shard, np.int32)),
            "row": pa.array(np.arange(count, dtype=np.int32)),
            "width": index.column("width"),
            "height": index.column("height"),
            "bytes": index.column("length").cast(pa.int32()),
            "source": index.column("source"),
        }
        shard_row = {
            "shard": shard,
            "set": found.dataset,
            "split": found.split,
            "name": found.shard.name,
            "sha256": found.shard.sha256,
            "images": count,
            "teachers": 0,
        }
        self._buffer("shards", pa.Table.from_pylist([shard_row]))
        self._buffer("image_rows", pa.table(columns))
        self._next_image, self._next_shard = ids.stop, shard + 1
        return ids

    def add_store(self, store: Store) -> Store:
        """Create the table of a label store, and return the store."""
        names = ", ".join(literal(class_name) for class_name in store.class_names or ["none"])
        with self._lock:
            self._database.execute(f"CREATE TYPE {store.class_type} AS ENUM ({names})")
        self.add_table(store.table, store.columns)
        return store

    def add_alias(self, store: Store, name: str) -> None:
        """Let queries find a store under another name as well."""
        if name not in RESERVED:
            with self._lock:
                self._database.execute(f"CREATE OR REPLACE VIEW {quoted(name)} AS SELECT * FROM {store.table}")

    def set_teachers(self, stores: Iterable[Store], labelled: Mapping[str, int]) -> None:
        """State the newest stores of the teachers, and by how many of them each shard (its address) is labelled.

        With `failures` they tell which images are labelled, at a fraction of the cost of a join with every store.
        """
        counts = pa.table(
            {"address": pa.array(labelled, pa.string()), "count": pa.array(labelled.values(), pa.int32())}
        )
        with self._lock:
            self._database.execute("DELETE FROM newest_teachers")
            for store in stores:
                self._database.execute("INSERT INTO newest_teachers VALUES (?)", (store.name,))
            self._database.register("labelled_by", counts)
            self._database.execute(
                "UPDATE shards SET teachers = labelled_by.count FROM labelled_by "
                "WHERE left(sha256, 16) = address AND teachers <> labelled_by.count"
            )
            self._database.unregister("labelled_by")

    def add_labels(self, store: Store, shards: Iterable[range], labels: pa.Table) -> None:
        """Add the rows of a label file to its store's table, for every image shard (ids) that it has labels of."""
        columns = {name: labels.column(name) for name in store.columns if name in labels.column_names}
        columns |= class_columns(store, labels)
        bad = pc.not_equal(labels.column("status"), "ok")
        for ids in shards:
            numbers = pa.array(ids, pa.int32())
            failed = pa.table([numbers, labels.column("status"), labels.column("reason")], ["id", "status", "reason"])
            failed = failed.filter(bad).add_column(1, "store", pa.repeat(store.name, pc.sum(bad).as_py() or 0))
            self._buffer(store.table, pa.table({"id": numbers, **columns}))
            self._buffer("failures", failed)

    def _buffer(self, table: str, rows: pa.Table) -> None:
        self._buffered[table].append(rows)
        if sum(map(len, self._buffered[table])) >= BATCH_ROWS:
            self._flush(table)

    def _flush(self, table: str) -> None:
        self.insert(table, pa.concat_tables(self._buffered.pop(table)))

    def flush(self) -> None:
        """Insert all rows that are still buffered."""
        for table in list(self._buffered):
            self._flush(table)

    def add_table(self, table: str, columns: Mapping[str, str]) -> None:
        """Create a table with a row per image, of these columns and their types."""
        with self._lock:
            typed = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
            self._database.execute(f"CREATE TABLE {table} (id INTEGER, {typed})")

    def insert(self, table: str, rows: pa.Table) -> None:
        """Insert rows into a table without buffering."""
        with self._lock:
            self._insert(table, rows)

    def _insert(self, table: str, rows: pa.Table) -> None:
        if len(rows):
            self._database.register("arriving", rows)
            self._database.execute(f"INSERT INTO {table} BY NAME SELECT * FROM arriving")
            self._database.unregister("arriving")
        self.version += 1

    def replace_rejections(self, rejections: pa.Table) -> None:
        """Replace the list of what is rejected."""
        hashes = pa.array([int(key, 16) for key in rejections.column("key").to_pylist()], pa.uint64())
        times = rejections.column("time").cast(pa.timestamp("us"))
        columns = {"hash": hashes, "store": rejections["store"], "reason": rejections["reason"], "time": times}
        with self._lock:
            self._database.begin()
            try:
                self._database.execute("DELETE FROM rejections")
                self._insert("rejections", pa.table(columns))
            except duckdb.Error:
                self._database.rollback()
                raise
            self._database.commit()
            self.version += 1

    def delete_images(self, ids: range) -> None:
        """Delete the images of a shard, which is gone, and its row of `shards`."""
        with self._lock:
            of_shard = "shard IN (SELECT shard FROM image_rows WHERE id >= ? AND id < ?)"
            self._database.execute(f"DELETE FROM shards WHERE {of_shard}", (ids.start, ids.stop))
        self.delete("image_rows", ids)

    def delete_labels(self, store: Store, shard: range) -> None:
        """Delete the labels of an image shard (ids), whose file is gone."""
        self.flush()
        self.delete(store.table, shard)
        with self._lock:
            of_shard = "DELETE FROM failures WHERE store = ? AND id >= ? AND id < ?"
            self._database.execute(of_shard, (store.name, shard.start, shard.stop))
            self.version += 1

    def delete(self, table: str, ids: range) -> None:
        """Delete the rows of these images from a table."""
        with self._lock:
            self._database.execute(f"DELETE FROM {table} WHERE id >= ? AND id < ?", (ids.start, ids.stop))
            self.version += 1


def class_columns(store: Store, labels: pa.Table) -> dict[str, pa.Array]:
    """Return the columns `classes` and `amounts`: lists, empty without a label; none for a task without classes."""
    if not store.label.amount_columns:
        return {}
    with explain_label_errors(store.name):
        found = store.label.class_amounts(labels)
        store.label.check_class_ids(found.classes)
    ends = np.searchsorted(found.rows, np.arange(len(labels) + 1)).astype(np.int32)
    names = pa.array(store.class_names, pa.string()).take(pa.array(found.classes))
    return {
        "classes": pa.ListArray.from_arrays(ends, names),
        "amounts": pa.ListArray.from_arrays(ends, pa.array(found.amounts)),
    }


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
