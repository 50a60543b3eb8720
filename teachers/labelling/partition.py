"""Labelling in parts: some shards each, by any process that reaches the root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ingest.pool import pool_shards
from pipeline.steps.artifact import Inputs
from teachers.labelling.labeller import (
    Labelling,
    alone,
    check_required,
    describe,
    jobs_left,
    label_shards,
    makers,
    open_makers,
)

__all__ = ["alone", "left", "work"]
MOST = 64
"""Parts that a pool is divided into: tens, whatever its size."""


def left(config: Mapping[str, Any], inputs: Inputs) -> list[dict[str, Any]]:
    """The shards that some teacher has not labelled, in parts of about equal size.

    Raises DataError if a teacher missed the metric it must reach.
    """
    check_required(config["require"], inputs.of_kind("teacher"))
    teachers = open_makers(inputs)
    named = {shard.sha256: (name, shard) for name, shard, _ in pool_shards(inputs["pool"], inputs.of_kind("data"))}
    jobs = jobs_left(teachers, [shard for _, shard in named.values()], inputs.force)
    count = min(len(jobs), MOST)
    parts: list[dict[str, Any]] = [{"shards": [], "images": 0} for _ in range(count)]
    for number, job in enumerate(jobs):
        part = parts[number * count // len(jobs)]
        part["shards"].append([named[job.shard.sha256][0], job.shard.name])
        part["images"] += len(job.shard)
    return parts


def work(config: Mapping[str, Any], inputs: Inputs, part: Mapping[str, Any]) -> dict[str, Any]:
    """Label the shards of a part, as far as they are not labelled, and describe what was done."""
    wanted = {(name, shard) for name, shard in part["shards"]}
    pool = pool_shards(inputs["pool"], inputs.of_kind("data"))
    shards = [shard for name, shard, _ in pool if (name, shard.name) in wanted]
    jobs = jobs_left(_open_once(inputs), shards, inputs.force)
    label_shards(jobs, config["batch"], inputs.runtime)
    return describe(jobs)


_opened: dict[str, list[Labelling]] = {}
"""The teachers of the part that this process did last: their models are loaded."""


def _open_once(inputs: Inputs) -> list[Labelling]:
    machine = inputs.runtime
    teachers = {maker.name: maker.artifact.digest for maker in makers(inputs)}
    same = repr((str(machine.root), machine.device, machine.precision, machine.workers, teachers))
    if same not in _opened:
        _opened.clear()
        _opened[same] = open_makers(inputs)
    return _opened[same]
