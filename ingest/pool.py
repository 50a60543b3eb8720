"""The steps that make a pool, of a run or a stage: all training images of its sets, each once, none held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.dataset import IngestedSet
from ingest.rejections import REJECTED_IMAGES, REJECTED_LABELS, read_copy
from ingest.true_labels import train_classes
from pipeline.data.sampling import long_tailed_counts, random_order
from pipeline.errors import DataError
from pipeline.steps.artifact import Artifact, Inputs, of_kind
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.root import in_parallel
from pipeline.stores.images import ImageShard
from pipeline.stores.naming import store_name
from pipeline.stores.rejections import rejected_labels

LOCATION_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("set", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
POOL_SCHEMA = pa.schema(
    [
        *LOCATION_SCHEMA,
        pa.field("used", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), metadata={"about": "why it is not used"}),
    ]
)
FILE = "pool.parquet"
REJECTED, LONG_TAIL = "rejected", "long tail"
"""Reasons why an image is not used."""
NO_REJECTED_IMAGES = pa.table({"key": pa.array([], pa.string()), "reason": pa.array([], pa.string())})


def gather_pool(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """List the training images of the sets `config["pool"]`, and which of them are used.

    Images whose bytes are held out in any set, were rejected by hand or were met before are not. Raises DataError if
    none is used.
    """
    pool = _Pool.of_sets(config["pool"], inputs)
    pool.write(out)
    return pool.counts()


def gather_for_stage(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """List the training images that a stage uses, and no others: then changes to others do not train it again.

    With `config["long_tail"]`, a long-tailed subset drawn with `config["seed"]`, of images with a class. Raises
    ConfigError if the sets have no class labels, or several kinds.
    """
    pool = _Pool.of_sets(config["pool"], inputs)
    if "long_tail" in config:
        names, classes = train_classes({name: IngestedSet(inputs[f"data.{name}"]) for name in config["pool"]})
        pool = pool.with_long_tail([classes.get(key, -1) for key in pool.keys], len(names), config)
    pool.used().write(out)
    return pool.counts()


class _Pool(NamedTuple):
    """The training images of some sets, and which of them are used."""

    images: pa.Table
    """By `LOCATION_SCHEMA`."""
    reasons: pa.Array
    """Why each image is not used; null if it is."""
    rejected: pa.Table
    """`key` and `reason` of all images that were rejected by hand."""

    @classmethod
    def of_sets(cls, names: Sequence[str], inputs: Inputs) -> _Pool:
        """Return the pool of the sets with these names. Raises DataError if no image is used."""
        sets = {name: IngestedSet(artifact) for name, artifact in inputs.of_kind("data").items()}
        # reversed: of a key that is held out in several sets, the last one is named
        held_out = _images({name: sets[name] for name in reversed(sets)}, ["val", "test"])
        images = _images({name: sets[name] for name in names}, ["train"])
        rejected = read_copy(inputs[REJECTED_IMAGES]) if REJECTED_IMAGES in inputs.artifacts else NO_REJECTED_IMAGES
        reasons = _reasons(images, held_out, rejected)
        if not reasons.null_count:
            found = pc.value_counts(reasons).to_pylist()
            why = ", ".join(f"{each['counts']:,} {each['values']}" for each in found) or "there are none"
            raise DataError(
                f"The pool ({', '.join(names)}) has no image to use: {why}. Add images, or hold out fewer of them."
            )
        return cls(images, reasons, rejected)

    @property
    def keys(self) -> list[str]:
        return self.images.column("key").to_pylist()

    def with_long_tail(self, class_ids: Sequence[int], classes: int, config: Mapping[str, Any]) -> _Pool:
        """Use a long-tailed subset, given each image's class, -1 for none. Raises DataError if no image has a class."""
        usable = np.where(pc.is_null(self.reasons).to_numpy(zero_copy_only=False), class_ids, -1)
        order = random_order(self.keys, config["seed"])
        sizes = long_tailed_counts(np.bincount(usable[usable >= 0], minlength=classes).tolist(), config["long_tail"])
        drawn = [order[usable[order] == class_id][:size] for class_id, size in enumerate(sizes)]
        kept = np.isin(np.arange(len(usable)), np.concatenate(drawn))
        if not kept.any():
            raise DataError(f"long_tail: no image of {', '.join(config['pool'])} has a class.")
        left_out = pc.if_else(pa.array(kept), pa.scalar(None, pa.string()), LONG_TAIL)
        return self._replace(reasons=pc.coalesce(self.reasons, left_out))

    def used(self) -> _Pool:
        """Drop the images that are not used."""
        used = pc.is_null(self.reasons)
        return self._replace(images=self.images.filter(used), reasons=self.reasons.filter(used))

    def write(self, out: Path) -> None:
        """Write `pool.parquet`."""
        columns = [*self.images.columns, pc.is_null(self.reasons), self.reasons]
        write_parquet(out / FILE, pa.table(columns, schema=POOL_SCHEMA))

    def counts(self) -> dict[str, Any]:
        """Return the counts for the manifest: all reasons that users gave count as one."""
        kinds = pc.replace_substring_regex(self.reasons.drop_null(), f"(?s)^{REJECTED}: .*", REJECTED)
        left_out = {row["values"]: row["counts"] for row in pc.value_counts(kinds).to_pylist()}
        counts = {"images": self.reasons.null_count, "left_out": left_out}
        matched = pc.is_in(self.rejected.column("key"), value_set=self.images.column("key"))
        unmatched = len(self.rejected) - (pc.sum(matched).as_py() or 0)
        return {**counts, "unmatched_rejections": unmatched} if unmatched else counts


def _images(sets: Mapping[str, IngestedSet], splits: list[str]) -> pa.Table:
    """Return a row of `LOCATION_SCHEMA` for every image of some splits."""
    tables = [LOCATION_SCHEMA.empty_table()]
    for name, ingested in sets.items():
        shards = [shard for split in splits for shard in ingested.images(split).shards]
        indexes = in_parallel(lambda shard: shard.columns("key"), shards)
        for shard, index in zip(shards, indexes, strict=True):
            names = (pa.repeat(text, len(index)) for text in (name, shard.name))
            tables.append(pa.table([index.column("key"), *names, _arange(len(index))], schema=LOCATION_SCHEMA))
    return pa.concat_tables(tables).combine_chunks()


def _arange(count: int) -> pa.Array:
    return pa.array(np.arange(count, dtype=np.int32))


def _reasons(images: pa.Table, held_out: pa.Table, rejected: pa.Table) -> pa.Array:
    """Return why each image is not used, null if it is. `index_in` gives the first row with a key."""
    keys = images.column("key").combine_chunks()
    held_out_in = held_out.column("set").take(pc.index_in(keys, held_out.column("key").combine_chunks()))
    rejected_for = rejected.column("reason").take(pc.index_in(keys, rejected.column("key").combine_chunks()))
    first = pc.index_in(keys, keys)
    duplicate = pc.not_equal(first, _arange(len(keys)))
    first_in = pc.if_else(duplicate, images.column("set").take(first), pa.scalar(None, pa.string()))
    parts = (("held out in ", held_out_in), (f"{REJECTED}: ", rejected_for), ("already in the pool from ", first_in))
    return pc.coalesce(*(pc.binary_join_element_wise(*part, "") for part in parts)).combine_chunks()


def read_pool(pool: Artifact, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of the images that are used, or some columns of them."""
    table = pool.load(FILE, lambda path: read_parquet(path, columns and [*columns, "used"]))
    return table.filter(table["used"]).select(columns or table.column_names)


def pool_keys(pool: Artifact, share: float, seed: int) -> set[str]:
    """Return the keys of a random share of a pool's images; of one seed, smaller shares are parts of larger ones."""
    keys = read_pool(pool, ["key"]).column("key").to_pylist()
    return {keys[row] for row in random_order(keys, seed)[: round(share * len(keys))]}


def pool_shards(pool: Artifact, sets: Mapping[str, Artifact]) -> Iterator[tuple[str, ImageShard, np.ndarray[Any, Any]]]:
    """Yield (set, image shard, rows to use, int64) of every shard with rows to use, in order.

    No reference to a yielded shard is kept, so that what it caches can be freed.
    """
    table = read_pool(pool, ["set", "shard", "row"])
    shards = table.group_by(["set", "shard"], use_threads=False).aggregate([("row", "list")])
    opened = {
        name: {shard.name: shard for shard in IngestedSet(sets[name]).images("train").shards}
        for name in pc.unique(shards.column("set")).to_pylist()
    }
    columns = (shards.column(name).to_pylist() for name in ("set", "shard"))
    for name, shard, rows in zip(*columns, shards.column("row_list"), strict=True):
        yield name, opened[name].pop(shard), rows.values.to_numpy().astype(np.int64)


def rejected_rows(artifacts: Mapping[str, Artifact]) -> dict[tuple[str, str, str], frozenset[int]]:
    """Return the pool's rows whose labels by a teacher were rejected by hand, by (set, shard, teacher).

    Rejections name a version of a teacher; those of other versions than the one in `artifacts` (by step, of a run or
    the student's inputs) do not count.
    """
    if REJECTED_LABELS not in artifacts:
        return {}
    rejected = read_copy(artifacts[REJECTED_LABELS])
    locations = read_pool(artifacts["pool"], LOCATION_SCHEMA.names)
    rows: dict[tuple[str, str, str], set[int]] = {}
    for teacher, made in of_kind(artifacts.values(), "teacher").items():
        of_teacher = pc.equal(rejected.column("store"), store_name(teacher, made.digest))
        keys = rejected.filter(of_teacher).column("key")
        for row in locations.filter(pc.is_in(locations.column("key"), value_set=keys)).to_pylist():
            rows.setdefault((row["set"], row["shard"], teacher), set()).add(row["row"])
    return {place: frozenset(numbers) for place, numbers in rows.items()}


def lapsed_rejections(artifacts: Mapping[str, Artifact]) -> dict[str, int]:
    """Count, by teacher, the rejected labels of other versions than the one in `artifacts`: they do not count."""
    rejected = read_copy(artifacts[REJECTED_LABELS])
    lapsed = {}
    for teacher, made in of_kind(artifacts.values(), "teacher").items():
        stores = rejected_labels(rejected, [teacher]).column("store")
        lapsed[teacher] = pc.sum(pc.not_equal(stores, store_name(teacher, made.digest))).as_py() or 0
    return {teacher: count for teacher, count in lapsed.items() if count}
