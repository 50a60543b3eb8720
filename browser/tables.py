"""What the page filters by: every column of images and labels that is small, in DuckDB tables.

images      a row per image: its set, split, shard and row, key, size, source
<store>     a row per image that a label store has been asked about: status, confidence and the task's scalar columns,
            and `classes` with how much of each is there (`amounts`)
failures    why images have no label
rejected    what was thrown out by hand

Blobs stay in their files. The tables are in a file of the server's own, gone when it ends, of which only a part is in
memory: a store of millions of images needs no more.
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

import tasks
from browser.catalogue import ImagesFound
from pipeline.storage.root import StoredFile
from pipeline.stores.labels import Label, LabelSpace, read_metadata, open_labels

MEMORY = "150MB"
AT_ONCE = 20_000
"""Rows that go into a table together, unless there are no more."""
OWN = {"images", "placed", "shards", "failures", "thrown", "rejected"}
"""Names that no teacher's labels go by."""
TYPES = {pa.int32(): "INTEGER", pa.float32(): "FLOAT"}
"""The columns of label files that are in the tables: those of these types."""
SETTINGS = {
    "enable_external_access": False,  # whatever a query says, it reaches no file and no network
    "python_enable_replacements": False,  # nor a variable of this program
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
REJECTED = ("hash", "store", "reason", "time")
IMAGES = """
CREATE TYPE status AS ENUM ('ok', 'none', 'failed');
CREATE TABLE shards (shard INTEGER, "set" VARCHAR, split VARCHAR, name VARCHAR, sha256 VARCHAR, images INTEGER);
CREATE TABLE placed (id INTEGER, hash UBIGINT, shard INTEGER, "row" INTEGER, width INTEGER, height INTEGER,
    bytes INTEGER, source VARCHAR);
CREATE TABLE failures (id INTEGER, store VARCHAR, status status, reason VARCHAR);
CREATE TABLE thrown (hash UBIGINT, store VARCHAR, reason VARCHAR, time TIMESTAMP);
CREATE VIEW rejected AS SELECT printf('%016x', hash) AS key, store, reason, time FROM thrown;
CREATE VIEW images AS SELECT id, printf('%016x', hash) AS key, "set", split, name AS shard, "row", width, height,
    bytes, source FROM placed JOIN shards USING (shard);
"""


@dataclasses.dataclass(frozen=True)
class Store:
    """A label store that has a table: its name, and how its labels are read."""

    name: str
    label: Label

    @property
    def columns(self) -> dict[str, str]:
        """The table's columns and their types, but for `id`."""
        fields = [field for field in self.label.columns() if field.type in TYPES]
        own = {field.name: TYPES[field.type] for field in fields}
        held = {"classes": f"{self.classes}[]", "amounts": "FLOAT[]"} if self.label.amount_columns else {}
        return {"status": "status", "confidence": "FLOAT", **own, **held}

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of its classes; those that occur twice with their number."""
        classes = self.label.space.classes
        twice = {name for name, count in collections.Counter(classes).items() if count > 1}
        return [f"{name} #{number}" if name in twice else name for number, name in enumerate(classes)]

    @property
    def table(self) -> str:
        return quoted(self.name)

    @property
    def classes(self) -> str:
        """The type of class names."""
        return quoted(f"classes of {self.name}")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a query found: the names of its columns, and rows."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


class Tables:
    """The tables, written by one thread and read by any number."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="must-browse-", ignore_cleanup_errors=True)
        file = Path(self._folder.name) / "tables.duckdb"
        self._database = duckdb.connect(file, config={"memory_limit": MEMORY, **SETTINGS})
        file.unlink()  # open as it is, it stays until the process ends, in whatever way
        self._database.execute(IMAGES)
        self._lock = threading.Lock()
        self._next, self._shards = 0, 0
        self._waiting: dict[str, list[pa.Table]] = collections.defaultdict(list)

    def close(self) -> None:
        """Nobody asks any more."""
        self._database.close()
        self._folder.cleanup()

    def ask(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Answer:
        """What a query finds. Any thread may ask."""
        with self.cursor() as cursor:
            found = cursor.execute(sql, parameters)
            return Answer([about[0] for about in found.description], found.fetchall())

    def numbers(self, sql: str, parameters: Sequence[Any]) -> NDArray[np.int32]:
        """The one column that a query finds, which is of whole numbers."""
        with self.cursor() as cursor:
            [column] = cursor.execute(sql, parameters).fetchnumpy().values()
            return np.asarray(column, np.int32)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of the caller's own; a context that closes it."""
        return self._database.cursor()

    def add_images(self, found: ImagesFound) -> range:
        """Put an image shard's rows into the table; their numbers, by which everything else names them."""
        index = found.shard.columns("key", "width", "height", "length", "source")
        count, shard = len(index), self._shards
        ids = range(self._next, self._next + count)
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
        about = (shard, found.dataset, found.split, found.shard.name, found.shard.sha256, count)
        self._add("shards", pa.table([[each] for each in about], ["shard", "set", "split", "name", "sha256", "images"]))
        self._add("placed", pa.table(columns))
        self._next, self._shards = ids.stop, shard + 1
        return ids

    def add_store(self, name: str, space: LabelSpace) -> Store:
        """Make the table of a label store."""
        store = Store(name, tasks.label(space))
        names = ", ".join(literal(one) for one in store.names or ["none"])
        with self._lock:
            self._database.execute(f"CREATE TYPE {store.classes} AS ENUM ({names})")
        self.add_table(store.table, store.columns)
        return store

    def call(self, store: Store, name: str) -> None:
        """Let queries find a store under another name as well."""
        if name not in OWN:
            with self._lock:
                self._database.execute(f"CREATE OR REPLACE VIEW {quoted(name)} AS SELECT * FROM {store.table}")

    def add_labels(self, store: Store, shard: Iterable[range], labels: pa.Table) -> None:
        """Put the rows of a label file into its store's table, for every image shard that it is about."""
        columns = {name: labels.column(name) for name in store.columns if name in labels.column_names}
        columns |= held(store, labels)
        bad = pc.not_equal(labels.column("status"), "ok")
        for ids in shard:
            numbers = pa.array(ids, pa.int32())
            failed = pa.table([numbers, labels.column("status"), labels.column("reason")], ["id", "status", "reason"])
            failed = failed.filter(bad).add_column(1, "store", pa.repeat(store.name, pc.sum(bad).as_py() or 0))
            self._add(store.table, pa.table({"id": numbers, **columns}))
            self._add("failures", failed)

    def _add(self, table: str, rows: pa.Table) -> None:
        """Rows go into a table some thousands at a time: each time has its price."""
        self._waiting[table].append(rows)
        if sum(map(len, self._waiting[table])) >= AT_ONCE:
            self._put(table)

    def _put(self, table: str) -> None:
        with self._lock:
            self._insert(table, pa.concat_tables(self._waiting.pop(table)))

    def _insert(self, table: str, rows: pa.Table) -> None:
        if len(rows):
            self._database.register("arriving", rows)
            self._database.execute(f"INSERT INTO {table} BY NAME SELECT * FROM arriving")
            self._database.unregister("arriving")

    def add_table(self, table: str, columns: Mapping[str, str]) -> None:
        """Make a table with a row per image, of these columns and their types."""
        with self._lock:
            typed = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items())
            self._database.execute(f"CREATE TABLE {table} (id INTEGER, {typed})")

    def put(self, table: str, rows: pa.Table) -> None:
        """Put rows into a table now."""
        with self._lock:
            self._insert(table, rows)

    def set_rejected(self, rejects: pa.Table) -> None:
        """What is rejected is this list now, and nothing else."""
        hashes = pa.array([int(key, 16) for key in rejects.column("key").to_pylist()], pa.uint64())
        times = rejects.column("time").cast(pa.timestamp("us"))
        rows = pa.table([hashes, rejects.column("store"), rejects.column("reason"), times], list(REJECTED))
        with self._lock:
            self._database.begin()
            self._database.execute("DELETE FROM thrown")
            self._insert("thrown", rows)
            self._database.commit()

    def settle(self) -> None:
        """Put in what was added and waits for more."""
        for table in list(self._waiting):
            self._put(table)

    def forget(self, store: Store, shard: range) -> None:
        """Take the labels of an image shard out: their file is gone."""
        between = (shard.start, shard.stop)
        self.settle()
        with self._lock:
            self._database.execute(f"DELETE FROM {store.table} WHERE id >= ? AND id < ?", between)
            self._database.execute(
                "DELETE FROM failures WHERE store = ? AND id >= ? AND id < ?", (store.name, *between)
            )


def read_scalars(file: StoredFile) -> tuple[LabelSpace, pa.Table]:
    """A label file's space, and its columns that are small or that `Label.class_amounts` reads."""

    def read(parquet: Any) -> tuple[LabelSpace, pa.Table]:
        schema = parquet.schema_arrow
        space = LabelSpace.from_json(read_metadata(schema, file)["space"])
        wanted = {"status", "reason", *tasks.label(space).amount_columns}
        names = [field.name for field in schema if field.type in TYPES or field.name in wanted]
        return space, parquet.read(names)

    return open_labels(file, read)


def held(store: Store, labels: pa.Table) -> dict[str, pa.Array]:
    """The columns `classes` and `amounts`: lists, empty where there is no label; none for a task without classes."""
    if not store.label.amount_columns:
        return {}
    found = store.label.class_amounts(labels)
    ends = np.searchsorted(found.rows, np.arange(len(labels) + 1)).astype(np.int32)
    names = pa.array(store.names, pa.string()).take(pa.array(found.classes))
    return {
        "classes": pa.ListArray.from_arrays(ends, names),
        "amounts": pa.ListArray.from_arrays(ends, pa.array(found.amounts)),
    }


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
