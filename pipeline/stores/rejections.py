"""What users threw out by hand: images, and labels of one version of a teacher, in one small file of a root.

<root>/labels/rejected.parquet      a row per rejection; there is no file while there is none

It is read, changed and written under a claim: of many who change it at once, in any process on any machine, none undoes
what another one did.
"""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Callable, Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, DataError
from pipeline.storage.errors import explain_full_disk, explain_read_errors
from pipeline.storage.lock import LEASE_S, IsHeld, OnWait, hold_lock
from pipeline.storage.path import StoragePath
from pipeline.storage.process_id import ProcessId
from pipeline.storage.root import Root
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
NOTHING = pa.Table.from_batches([], SCHEMA)  # SCHEMA.empty_table() would load pandas, where there is one
PATH = "labels/rejected.parquet"
CLAIM = "claims/rejected"
KEY = "^[0-9a-f]{16}$"
WAIT_S = 2 * LEASE_S
"""For others who change the list, a moment each: longer than it takes to find out that one elsewhere was killed."""


def read_rejects(root: Root) -> pa.Table:
    """The list of a root, a row of `SCHEMA` per rejection; empty where nothing is rejected. DataError names a file that
    is damaged, or that another version of this project wrote otherwise.
    """
    file = root / PATH
    with explain_read_errors(file):
        data = file.read_if_exists()
    if data is None:
        return NOTHING
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a readable list of rejections ({error}). {_mending()}") from error
    if not table.schema.equals(SCHEMA):
        raise DataError(f"{file}: its columns are not {', '.join(SCHEMA.names)}, as documented. {_mending()}")
    version = (table.schema.metadata or {}).get(b"must_rejected", b"").decode()
    if version != str(SCHEMA_VERSION):
        raise DataError(f"{file}: schema version {version!r}; this version reads {SCHEMA_VERSION}. {_mending()}")
    return table


def _mending() -> str:
    return "Put back one that was whole, or delete it: then nothing is rejected."


def reject(root: Root, keys: Sequence[str], store: str | None, reason: str) -> int:
    """Reject images, by their keys, for every teacher, or only their labels in the label store of this name. Returns
    how many were not rejected so yet; of the others the reason changes, and nothing else.

    Raises ConfigError for a key or store that can't be one, for an empty reason, and if others don't stop changing the
    list; DataError for a list that can't be read or a disk that is full. Then the list is as it was.
    """
    wanted, words = _checked(keys, store), " ".join(reason.split())
    if not words:
        raise ConfigError(f"reason {reason!r} says nothing: say in a few words why this is rejected.")

    def add(table: pa.Table) -> pa.Table:
        there = _about(table, wanted, store)
        reasons = pc.if_else(there, pa.scalar(words), table["reason"])
        known = table.set_column(SCHEMA.get_field_index("reason"), SCHEMA.field("reason"), reasons)
        new = wanted.filter(pc.invert(pc.is_in(wanted, value_set=table["key"].filter(there))))
        same = (pa.scalar(store, pa.string()), words, datetime.datetime.now(datetime.UTC))
        columns = [new, *(pa.repeat(value, len(new)) for value in same)]
        return pa.concat_tables([known, pa.table(columns, names=SCHEMA.names).cast(SCHEMA)])

    return _change(root, add)


def take_back(root: Root, keys: Sequence[str], store: str | None) -> int:
    """Undo `reject` for these keys and this store, and return how many were on the list. Raises as `reject` does."""
    wanted = _checked(keys, store)
    return -_change(root, lambda table: table.filter(pc.invert(_about(table, wanted, store))))


def rejected_images(table: pa.Table) -> pa.Table:
    """The rows of a list that reject images."""
    return table.filter(pc.is_null(table["store"]))


def rejected_labels(table: pa.Table, teachers: Collection[str]) -> pa.Table:
    """The rows of a list that reject labels of these teachers, whatever their version."""
    return table.filter(pc.is_in(_teachers(table), value_set=pa.array(teachers, pa.string())))


def rejected_teachers(table: pa.Table) -> list[str]:
    """The teachers whose labels a list rejects, in order."""
    return sorted(_teachers(table).drop_null().unique().to_pylist())


def _teachers(table: pa.Table) -> pa.ChunkedArray:
    return pc.utf8_slice_codeunits(table["store"], 0, -DIGITS - 1)


def in_order(table: pa.Table) -> pa.Table:
    """The rows in an order that does not depend on how the list came about."""
    return table.sort_by([("key", "ascending"), ("store", "ascending")])


def hash_rejects(table: pa.Table) -> str:
    """sha256 (hex) of what is rejected, in whatever order, when and for whatever reason."""
    columns = (in_order(table)[name] for name in ("key", "store"))
    lines = pc.binary_join_element_wise(*columns, "\t", null_handling="replace").combine_chunks()
    text = pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "\n")
    return hashlib.sha256(text[0].as_py().encode()).hexdigest()


def _checked(keys: Sequence[str], store: str | None) -> pa.Array:
    """The keys, each once."""
    if store is not None and not NAME.fullmatch(store):
        raise ConfigError(
            f"store {store!r} is no label store: they are called like the folders below labels/, the teacher's name, a "
            f"dash and {DIGITS} hex digits."
        )
    wanted = pa.array(keys, pa.string())
    wrong = wanted.filter(pc.invert(pc.match_substring_regex(wanted, KEY)))
    if len(wrong):
        raise ConfigError(f"key {wrong[0].as_py()!r} is no image's key: those are 16 hex digits.")
    return wanted.unique()


def _about(table: pa.Table, keys: pa.Array, store: str | None) -> pa.ChunkedArray:
    """Which rows reject these images, or their labels in this store."""
    stores = table["store"]
    same = pc.is_null(stores) if store is None else pc.fill_null(pc.equal(stores, store), False)
    return pc.and_(same, pc.is_in(table["key"], value_set=keys))


def _change(root: Root, change: Callable[[pa.Table], pa.Table]) -> int:
    """Put `change(list)` in the place of the list, whole or not at all. Returns how many rows there are more."""
    file = root / PATH
    try:
        with (
            explain_full_disk(PATH, root.local_path()),
            hold_lock(root / CLAIM, _waiting(file), lambda: None) as is_held,
        ):
            before = read_rejects(root)
            after = change(before)
            if not after.equals(before):
                _replace(file, after, is_held)
            return len(after) - len(before)
    except OSError as error:
        raise ConfigError(f"{file}: can't be changed ({error.strerror}). Make the root one that can be.") from error


def _replace(file: StoragePath, table: pa.Table, is_held: IsHeld) -> None:
    data = _to_bytes(table)
    if not is_held():
        raise ConfigError(f"{file}: another process took over while this one slept. Nothing was changed: try again.")
    if len(table):
        file.write(data)
    else:
        file.remove()


def _to_bytes(table: pa.Table) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, compression="zstd")
    data: bytes = stream.getvalue().to_pybytes()
    return data


def _waiting(file: StoragePath) -> OnWait:
    """What is done while somebody else changes the list: nothing, for so long."""
    deadline = time.monotonic() + WAIT_S

    def tell(holder: ProcessId) -> None:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{file}: others have been changing it for {WAIT_S:g} s, now process {holder.number} on "
                f"{holder.machine.split()[0]}. Try again, or end that process."
            )

    return tell
