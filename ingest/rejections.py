"""The steps that take what users rejected by hand into a run, of a root where something is: a copy of its list each.

Images and labels apart: rejected images leave the pool, rejected labels matter to the student alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.stores.rejections import hash_rejects, in_order, read_rejects, rejected_images, rejected_labels

REJECTED_IMAGES, REJECTED_LABELS = "rejected.images", "rejected.labels"
"""The steps' names."""
FILE = "rejected.parquet"


def rejections_config(table: pa.Table) -> dict[str, Any]:
    """A list of rejections in a step's configuration: whatever is rejected changes it, when and why does not."""
    return {"count": len(table), "sha256": hash_rejects(table)[:16]}


def copy_images(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Leave `key` and `reason` of the images that are rejected. ConfigError if they are not those of the plan."""
    return _copy(rejected_images(read_rejects(inputs.runtime.root)), config["rejected"], ["key", "reason"], out)


def copy_labels(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Leave `key` and `store` of the labels by `config["teachers"]`, whatever their versions, that are rejected.
    ConfigError if they are not those of the plan.
    """
    table = rejected_labels(read_rejects(inputs.runtime.root), config["teachers"])
    return _copy(table, config["rejected"], ["key", "store"], out)


def _copy(table: pa.Table, planned: Mapping[str, Any], columns: list[str], out: Path) -> Mapping[str, Any]:
    found = rejections_config(table)
    if found != planned:
        raise ConfigError(
            f"The list of what is rejected changed since the run was planned: {planned['count']} rejections with hash "
            f"{planned['sha256']} then, {found['count']} with {found['sha256']} now. Run again."
        )
    # without times or anything else that differs between lists of the same rejections
    pq.write_table(in_order(table).select(columns).replace_schema_metadata(), out / FILE)
    return {"rejections": len(table)}


def read_copy(made: Artifact) -> pa.Table:
    """What one of the steps left."""
    return made.load(FILE, pq.read_table)
