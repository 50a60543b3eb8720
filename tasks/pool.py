"""The step that decides which images are the pool: all training images of its sets, once each, none held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import Artifact, Inputs
from pipeline.errors import DataError
from pipeline.images import ImageShard
from pipeline.roots import in_parallel
from tasks.ingest import IngestedSet

PLACES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("set", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        *PLACES,
        pa.field("used", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), metadata={"about": "why it is not used"}),
    ]
)
FILE = "pool.parquet"


def gather_pool(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """List the images of the sets `config["pool"]`, and leave out by content what is held out in any set, or double.

    Raises DataError if nothing is left.
    """
    sets = {name: IngestedSet(made) for name, made in inputs.of_kind("data").items()}
    # of a key that is held out in several sets, the last one is named
    held_out = _images({name: sets[name] for name in reversed(sets)}, ["val", "test"])
    images = _images({name: sets[name] for name in config["pool"]}, ["train"])
    reasons = _reasons(images, held_out)
    used = pc.is_null(reasons)
    count = pc.sum(used).as_py() or 0
    if not count:
        raise DataError(f"The pool ({', '.join(config['pool'])}) holds no image that is not held out elsewhere.")
    pq.write_table(pa.table([*images.columns, used, reasons], schema=SCHEMA), out / FILE)
    left_out = {row["values"]: row["counts"] for row in pc.value_counts(reasons.drop_null()).to_pylist()}
    return {"images": count, "left_out": left_out}


def _images(sets: Mapping[str, IngestedSet], splits: list[str]) -> pa.Table:
    """A row of `PLACES` for every image of some splits."""
    tables = [PLACES.empty_table()]
    for name, found in sets.items():
        shards = [shard for split in splits for shard in found.images(split).shards]
        indexes = in_parallel(lambda shard: shard.columns("key"), shards)
        for shard, keys in ((shard, index.column("key")) for shard, index in zip(shards, indexes, strict=True)):
            named = (pa.repeat(text, len(keys)) for text in (name, shard.name))
            tables.append(pa.table([keys, *named, _numbers(len(keys))], schema=PLACES))
    return pa.concat_tables(tables).combine_chunks()


def _numbers(count: int) -> pa.Array:
    return pa.array(np.arange(count, dtype=np.int32))


def _reasons(images: pa.Table, held_out: pa.Table) -> pa.Array:
    """Why an image is not used, or null: `index_in` finds where a key is met first."""
    keys = images.column("key").combine_chunks()
    held = held_out.column("set").take(pc.index_in(keys, held_out.column("key").combine_chunks()))
    first = pc.index_in(keys, keys)
    again = pc.not_equal(first, _numbers(len(keys)))
    met = pc.if_else(again, images.column("set").take(first), pa.scalar(None, pa.string()))
    parts = (("held out in ", held), ("already in the pool from ", met))
    return pc.coalesce(*(pc.binary_join_element_wise(*part, "") for part in parts)).combine_chunks()


def read_pool(pool: Artifact, columns: list[str] | None = None) -> pa.Table:
    """The rows of the pool's table that are used, or some of its columns."""
    return pool.load(FILE, lambda path: pq.read_table(path, columns=columns, filters=[("used", "=", True)]))


def pool_shards(pool: Artifact, sets: Mapping[str, Artifact]) -> Iterator[tuple[str, ImageShard, np.ndarray[Any, Any]]]:
    """(set, image shard, rows to use) of every shard of the pool, in order; shards with no row to use are left out.

    Each is handed over: what is read of it is kept by those who keep it.
    """
    table = read_pool(pool, ["set", "shard", "row", "used"])
    shards = table.group_by(["set", "shard"], use_threads=False).aggregate([("row", "list")])
    opened = {
        name: {shard.name: shard for shard in IngestedSet(sets[name]).images("train").shards}
        for name in pc.unique(shards.column("set")).to_pylist()
    }
    columns = (shards.column(name).to_pylist() for name in ("set", "shard"))
    for name, shard, rows in zip(*columns, shards.column("row_list"), strict=True):
        yield name, opened[name].pop(shard), rows.values.to_numpy().astype(np.int64)
