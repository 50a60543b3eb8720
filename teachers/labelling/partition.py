"""Labelling in parts of some shards each, done by any process that reaches the root: see `StepKind.parts`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ingest.pool import pool_shards
from pipeline.steps.artifact import Inputs
from teachers.labelling.gate import check_gate
from teachers.labelling.labeller import (
    SETS,
    LabelMaker,
    exclusive,
    label_makers,
    label_shards,
    pending_jobs,
    summarize,
)

__all__ = ["do_part", "exclusive", "remaining_parts"]
MAX_PARTS = 64


def remaining_parts(config: Mapping[str, Any], inputs: Inputs) -> list[dict[str, Any]]:
    """Divide the shards that some teacher has not labelled into parts of about equal size.

    Raises DataError if a teacher may not label, as `check_gate` does.
    """
    check_gate(config["require"], inputs.of_kind("teacher"))
    shards = [(name, shard) for name, shard, _ in pool_shards(inputs["pool"], inputs.of_kind("data"))]
    jobs = pending_jobs(label_makers(inputs, config.get(SETS)), shards, inputs.force)
    count = min(len(jobs), MAX_PARTS)
    parts: list[dict[str, Any]] = [{"shards": [], "images": 0} for _ in range(count)]
    for number, job in enumerate(jobs):
        part = parts[number * count // len(jobs)]
        part["shards"].append([job.set_name, job.shard.name])
        part["images"] += len(job.shard)
    return parts


def do_part(config: Mapping[str, Any], inputs: Inputs, part: Mapping[str, Any]) -> dict[str, Any]:
    """Label the shards of a part that are not labelled yet, and return the summary of what was done and the seconds."""
    began = time.monotonic()
    chosen = {(name, shard) for name, shard in part["shards"]}
    pool = pool_shards(inputs["pool"], inputs.of_kind("data"))
    shards = [(name, shard) for name, shard, _ in pool if (name, shard.name) in chosen]
    jobs = pending_jobs(_open_cached(config, inputs), shards, inputs.force)
    label_shards(jobs, config["batch"], inputs.runtime)
    return {**summarize(jobs), "seconds": time.monotonic() - began}


_opened: dict[str, list[LabelMaker]] = {}
"""The label makers of the last part in this process, whose models are loaded."""


def _open_cached(config: Mapping[str, Any], inputs: Inputs) -> list[LabelMaker]:
    runtime, makers = inputs.runtime, label_makers(inputs, config.get(SETS))
    digests = {maker.name: (maker.artifact.digest, maker.sets) for maker in makers}
    key = repr((str(runtime.root), runtime.device, runtime.precision, runtime.workers, digests))
    if key not in _opened:
        _opened.clear()
        _opened[key] = makers
    return _opened[key]
