"""List of images and labels that users rejected by hand: one small file per root.

<root>/labels/rejected.parquet      a row per rejection; no file while nothing is rejected

The file is read, changed and written under a lock, so that writers on all machines take turns.
"""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Callable, Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, DataError
from pipeline.storage.lock import DEAD_AFTER_S, LOCKS, IsHeld, OnWait, hold_lock
from pipeline.storage.parquet import explain_parquet_errors, open_parquet, write_parquet
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId
from pipeline.storage.root import Root
from pipeline.storage.shortage import explain_shortage
from pipeline.stores.naming import DIGITS, NAME

SCHEMA_VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False, metadata={"about": "of the image"}),
        pa.field(
            "store",
            pa.string(),
            metadata={"about": "folder of the labels that are rejected, one version of one teacher's; null: the image"},
        ),
        pa.field("reason", pa.string(), nullable=False, metadata={"about": "why, in the user's words"}),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False, metadata={"about": "when it was rejected"}),
    ],
    metadata={"must_rejected": str(SCHEMA_VERSION)},
)
NO_REJECTIONS = pa.Table.from_batches([], SCHEMA)  # SCHEMA.empty_table() would load pandas, where there is one
PATH = "labels/rejected.parquet"
LOCK = f"{LOCKS}/rejected"
REPAIR = "Put back an intact copy, or delete it: then nothing is rejected."
KEY = "^[0-9a-f]{16}$"
WAIT_S = 2 * DEAD_AFTER_S
"""Longest wait for other writers: longer than it takes to notice that one on another machine was killed."""


def read_rejections(root: Root) -> pa.Table:
    """Return the list of a root, a row of `SCHEMA` per rejection; empty if nothing is rejected.

    Raises DataError if the file is damaged or has another schema version.
    """
    file = root / PATH
    data = file.read_if_exists()
    if data is None:
        return NO_REJECTIONS
    with explain_parquet_errors(file, "list of rejections", REPAIR):
        table = open_parquet(pa.BufferReader(data)).read()
    if not table.schema.equals(SCHEMA):
        raise DataError(f"{file}: its columns are not {', '.join(SCHEMA.names)}, as documented. {REPAIR}")
    keys = table["key"].filter(pc.invert(pc.match_substring_regex(table["key"], KEY)))
    if len(keys):
        raise DataError(f"{file}: holds the key {keys[0].as_py()!r:.40}, which is no image's. {REPAIR}")
    version = (table.schema.metadata or {}).get(b"must_rejected", b"").decode()
    if version != str(SCHEMA_VERSION):
        raise DataError(f"{file}: schema version {version!r}; this version reads {SCHEMA_VERSION}. {REPAIR}")
    return table


def reject(root: Root, keys: Sequence[str], store: str | None, reason: str) -> list[str]:
    """Reject images by their keys (16 hex digits), or with `store` only their labels in the label store of this name.

    Returns the keys that were not on the list; those that were keep their reason and time. Raises ConfigError for an
    invalid key or store, an empty reason, or if other writers don't finish; DataError if the list can't be read;
    Shortage if the disk is full. The list is then as before.

    >>> reject(root, ["0123456789abcdef"], None, "blurred")
    ['0123456789abcdef']
    """
    rejected, words = _check_keys(keys, store), " ".join(reason.split())
    if not words:
        raise ConfigError(f"reason {reason!r} is empty: say in a few words why this is rejected.")

    def add(table: pa.Table) -> pa.Table:
        listed = table["key"].filter(_matches(table, rejected, store))
        new = rejected.filter(pc.invert(pc.is_in(rejected, value_set=listed)))
        constants = (pa.scalar(store, pa.string()), words, datetime.datetime.now(datetime.UTC))
        columns = [new, *(pa.repeat(value, len(new)) for value in constants)]
        return pa.concat_tables([table, pa.table(columns, names=SCHEMA.names).cast(SCHEMA)])

    before, after = _change(root, add)
    new: list[str] = after["key"].slice(len(before)).to_pylist()
    return new


def undo_reject(root: Root, keys: Sequence[str], store: str | None) -> int:
    """Undo `reject` for these keys and this store, and return how many were on the list. Raises as `reject` does."""
    accepted = _check_keys(keys, store)
    before, after = _change(root, lambda table: table.filter(pc.invert(_matches(table, accepted, store))))
    return len(before) - len(after)


def rejected_images(table: pa.Table) -> pa.Table:
    """Return the rows that reject images."""
    return table.filter(pc.is_null(table["store"]))


def rejected_labels(table: pa.Table, teachers: Collection[str]) -> pa.Table:
    """Return the rows that reject labels of any version of these teachers."""
    return table.filter(pc.is_in(_teachers(table), value_set=pa.array(teachers, pa.string())))


def rejected_teachers(table: pa.Table) -> list[str]:
    """Return the teachers with rejected labels, sorted."""
    return sorted(_teachers(table).drop_null().unique().to_pylist())


def _teachers(table: pa.Table) -> pa.ChunkedArray:
    return pc.utf8_slice_codeunits(table["store"], 0, -DIGITS - 1)


def sort_rejections(table: pa.Table) -> pa.Table:
    """Return the rows sorted by key and store, so that the history of the list has no influence."""
    return table.sort_by([("key", "ascending"), ("store", "ascending")])


def hash_rejections(table: pa.Table) -> str:
    """Return the sha256 (hex) of what is rejected, whatever the order, times and reasons."""
    columns = (sort_rejections(table)[name] for name in ("key", "store"))
    lines = pc.binary_join_element_wise(*columns, "\t", null_handling="replace").combine_chunks()
    text = pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "\n")
    return hashlib.sha256(text[0].as_py().encode()).hexdigest()


def _check_keys(keys: Sequence[str], store: str | None) -> pa.Array:
    """Return the distinct keys. Raises ConfigError if one is malformed, or the name of the store is."""
    if store is not None and not NAME.fullmatch(store):
        raise ConfigError(
            f"store {store!r} is no label store: give the name of a folder below labels/, which is the teacher's name, "
            f"a dash and {DIGITS} hex digits."
        )
    array = pa.array(keys, pa.string())
    wrong = array.filter(pc.invert(pc.match_substring_regex(array, KEY)))
    if len(wrong):
        raise ConfigError(f"key {wrong[0].as_py()!r} is no image's key: those are 16 hex digits.")
    return array.unique()


def _matches(table: pa.Table, keys: pa.Array, store: str | None) -> pa.ChunkedArray:
    """Return a mask of the rows that reject these images, or their labels in this store."""
    stores = table["store"]
    same = pc.is_null(stores) if store is None else pc.fill_null(pc.equal(stores, store), False)
    return pc.and_(same, pc.is_in(table["key"], value_set=keys))


def _change(root: Root, change: Callable[[pa.Table], pa.Table]) -> tuple[pa.Table, pa.Table]:
    """Replace the list by `change(list)` atomically, and return it as it was and as it is."""
    file = root / PATH
    on_wait = _give_up_later(file)
    try:
        with explain_shortage(PATH, root.local_path()):
            while True:
                with hold_lock(root / LOCK, on_wait, lambda: None) as is_held:
                    before = read_rejections(root)
                    after = change(before)
                    if after.equals(before) or _replace(file, after, is_held):
                        return before, after
    except OSError as error:
        raise ConfigError(f"{file}: can't be changed ({error.strerror}). Make the root writable.") from error


def _replace(file: StoragePath, table: pa.Table, is_held: IsHeld) -> bool:
    """Write the list, unless another process took over because this one slept: then the change starts again."""
    data = _to_bytes(table)
    if not is_held():
        return False
    if len(table):
        file.write(data)
    else:
        file.remove()
    return True


def _to_bytes(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    write_parquet(stream, table, compression="zstd")
    data: bytes = stream.getvalue().to_pybytes()
    return data


def _give_up_later(file: StoragePath) -> OnWait:
    """Return a callback that raises ConfigError once other writers have held the list for WAIT_S."""
    deadline = time.monotonic() + WAIT_S

    def on_wait(holder: ProcessId) -> None:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{file}: others have been changing it for {WAIT_S:g} s, now {holder}. Try again, or end that process."
            )

    return on_wait
