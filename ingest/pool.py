"""The steps that decide which images are a pool, the run's or a stage's: all training images of its sets, once each,
none held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.dataset import IngestedSet
from ingest.rejections import REJECTED_IMAGES, REJECTED_LABELS, read_copy
from ingest.true_labels import train_classes
from pipeline.data.sampling import long_tail, random_order
from pipeline.errors import DataError
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.storage.root import in_parallel
from pipeline.stores.images import ImageShard
from pipeline.stores.naming import store_name

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
REJECTED, TAIL = "rejected", "long tail"
NONE_REJECTED = pa.table({"key": pa.array([], pa.string()), "reason": pa.array([], pa.string())})


def gather_pool(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """List the images of the sets `config["pool"]`, and leave out by content what is held out in any set, was rejected
    by hand, or is double.

    Raises DataError if nothing is left.
    """
    found = _Found.of(config["pool"], inputs)
    found.write(out)
    return found.counts()


def gather_for_stage(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """The same for a stage, which lists the images that are used and nothing else: what changes about others, in
    whatever set, trains no stage again. With a `long_tail`, drawn by a `seed`, images that it leaves
    out are not used, and those without a class. ConfigError if the sets have no class labels, or several kinds.
    """
    found = _Found.of(config["pool"], inputs)
    if "long_tail" in config:
        names, classes = train_classes({name: IngestedSet(inputs[f"data.{name}"]) for name in config["pool"]})
        found = found.thinned([classes.get(key, -1) for key in found.keys], len(names), config)
    found.used().write(out)
    return found.counts()


class _Found(NamedTuple):
    """The images of some sets by `PLACES`, why each is not used, null if it is, and what was rejected by hand."""

    images: pa.Table
    reasons: pa.Array
    rejected: pa.Table

    @classmethod
    def of(cls, names: Sequence[str], inputs: Inputs) -> _Found:
        """Those of the sets of these names. DataError if none of them is to be used."""
        sets = {name: IngestedSet(made) for name, made in inputs.of_kind("data").items()}
        # of a key that is held out in several sets, the last one is named
        held_out = _images({name: sets[name] for name in reversed(sets)}, ["val", "test"])
        images = _images({name: sets[name] for name in names}, ["train"])
        rejected = read_copy(inputs[REJECTED_IMAGES]) if REJECTED_IMAGES in inputs.artifacts else NONE_REJECTED
        reasons = _reasons(images, held_out, rejected)
        if not reasons.null_count:
            raise DataError(f"The pool ({', '.join(names)}) holds no image that is neither held out nor rejected.")
        return cls(images, reasons, rejected)

    @property
    def keys(self) -> list[str]:
        keys: list[str] = self.images.column("key").to_pylist()
        return keys

    def thinned(self, numbers: Sequence[int], classes: int, config: Mapping[str, Any]) -> _Found:
        """With a long tail, given the number of each image's class, -1 for none. DataError if no image has a class."""
        of = np.where(pc.is_null(self.reasons).to_numpy(zero_copy_only=False), numbers, -1)
        order = random_order(self.keys, config["seed"])
        wanted = long_tail(np.bincount(of[of >= 0], minlength=classes).tolist(), config["long_tail"])
        chosen = [order[of[order] == number][:count] for number, count in enumerate(wanted)]
        kept = np.isin(np.arange(len(of)), np.concatenate(chosen))
        if not kept.any():
            raise DataError(f"long_tail: no image of {', '.join(config['pool'])} has a class.")
        thin = pc.if_else(pa.array(kept), pa.scalar(None, pa.string()), TAIL)
        return self._replace(reasons=pc.coalesce(self.reasons, thin))

    def used(self) -> _Found:
        """Without the images that are not used."""
        used = pc.is_null(self.reasons)
        return self._replace(images=self.images.filter(used), reasons=self.reasons.filter(used))

    def write(self, out: Path) -> None:
        """Leave the table."""
        columns = [*self.images.columns, pc.is_null(self.reasons), self.reasons]
        pq.write_table(pa.table(columns, schema=SCHEMA), out / FILE)

    def counts(self) -> dict[str, Any]:
        """For the manifest."""
        left_out = _count(self.reasons)
        return {"images": self.reasons.null_count, "left_out": left_out, **_unmatched(self.images, self.rejected)}


def _count(reasons: pa.Array) -> dict[str, int]:
    """How many images are left out by reason, those that users gave as one."""
    kinds = pc.replace_substring_regex(reasons.drop_null(), f"(?s)^{REJECTED}: .*", REJECTED)
    return {row["values"]: row["counts"] for row in pc.value_counts(kinds).to_pylist()}


def _unmatched(images: pa.Table, rejected: pa.Table) -> dict[str, int]:
    """How many images are rejected that no set of the pool has, if there are any."""
    found = pc.is_in(rejected.column("key"), value_set=images.column("key"))
    count = len(rejected) - (pc.sum(found).as_py() or 0)
    return {"unmatched_rejections": count} if count else {}


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


def _reasons(images: pa.Table, held_out: pa.Table, rejected: pa.Table) -> pa.Array:
    """Why an image is not used, or null: `index_in` finds where a key is met first."""
    keys = images.column("key").combine_chunks()
    held = held_out.column("set").take(pc.index_in(keys, held_out.column("key").combine_chunks()))
    thrown = rejected.column("reason").take(pc.index_in(keys, rejected.column("key").combine_chunks()))
    first = pc.index_in(keys, keys)
    again = pc.not_equal(first, _numbers(len(keys)))
    met = pc.if_else(again, images.column("set").take(first), pa.scalar(None, pa.string()))
    parts = (("held out in ", held), (f"{REJECTED}: ", thrown), ("already in the pool from ", met))
    return pc.coalesce(*(pc.binary_join_element_wise(*part, "") for part in parts)).combine_chunks()


def read_pool(pool: Artifact, columns: list[str] | None = None) -> pa.Table:
    """The rows of the pool's table that are used, or some of its columns."""
    return pool.load(FILE, lambda path: pq.read_table(path, columns=columns, filters=[("used", "=", True)]))


def pool_keys(pool: Artifact, share: float, seed: int) -> set[str]:
    """The keys of a share of a pool's images, drawn by a seed: a smaller share is a part of a larger one."""
    keys = read_pool(pool, ["key", "used"]).column("key").to_pylist()
    return {keys[place] for place in random_order(keys, seed)[: round(share * len(keys))]}


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


def rejected_rows(artifacts: Mapping[str, Artifact]) -> dict[tuple[str, str, str], frozenset[int]]:
    """Rows of image shards whose labels by a teacher are rejected, by (set, shard, teacher), as far as they are in the
    pool and the teacher's version is the one named. `artifacts`, by step, are a run's or what the student is made of.
    """
    if REJECTED_LABELS not in artifacts:
        return {}
    rejected = read_copy(artifacts[REJECTED_LABELS])
    places = read_pool(artifacts["pool"], PLACES.names)
    rows: dict[tuple[str, str, str], set[int]] = {}
    for step, made in artifacts.items():
        kind, _, teacher = step.partition(".")
        if kind == "teacher":
            of_teacher = pc.equal(rejected.column("store"), store_name(teacher, made.digest))
            keys = rejected.filter(of_teacher).column("key")
            for place in places.filter(pc.is_in(places.column("key"), value_set=keys)).to_pylist():
                rows.setdefault((place["set"], place["shard"], teacher), set()).add(place["row"])
    return {place: frozenset(numbers) for place, numbers in rows.items()}
