"""The step that decides which images are the pool: all training images of its sets, once each, none held out."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts import Artifact, Inputs
from pipeline.errors import DataError
from pipeline.images import ImageShard
from tasks.ingest import IngestedSet
from tasks.shelves import held_out_keys

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("set", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
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
    held_out = {key: name for name, found in sets.items() for key in held_out_keys(found)}
    met: dict[str, str] = {}
    rows = []
    for name in config["pool"]:
        for shard in sets[name].images("train").shards:
            for row, key in enumerate(shard.keys):
                reason = _reason(key, name, held_out, met)
                met.setdefault(key, name)
                rows.append(
                    {"key": key, "set": name, "shard": shard.name, "row": row, "used": not reason, "reason": reason}
                )
    used = sum(row["used"] for row in rows)
    if not used:
        raise DataError(f"The pool ({', '.join(config['pool'])}) holds no image that is not held out elsewhere.")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out / FILE)
    reasons = collections.Counter(row["reason"] for row in rows if row["reason"])
    return {"images": used, "left_out": dict(reasons)}


def _reason(key: str, name: str, held_out: Mapping[str, str], met: Mapping[str, str]) -> str | None:
    if key in held_out:
        return f"held out in {held_out[key]}"
    if key in met:
        return f"already in the pool from {met[key]}"
    return None


def read_pool(pool: Artifact, columns: list[str] | None = None) -> pa.Table:
    """The rows of the pool's table that are used, or some of its columns."""
    return pool.load(FILE, lambda path: pq.read_table(path, columns=columns, filters=[("used", "=", True)]))


def pool_shards(pool: Artifact, sets: Mapping[str, Artifact]) -> Iterator[tuple[str, ImageShard, np.ndarray[Any, Any]]]:
    """(set, image shard, rows to use) of every shard of the pool, in order; shards with no row to use are left out."""
    table = read_pool(pool).to_pydict()
    rows: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for name, shard, row in zip(table["set"], table["shard"], table["row"], strict=True):
        rows[name, shard].append(row)
    opened = {
        name: {s.name: s for s in IngestedSet(sets[name]).images("train").shards} for name in {n for n, _ in rows}
    }
    for (name, shard), used in rows.items():
        yield name, opened[name][shard], np.array(used)
