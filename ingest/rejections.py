"""The steps that copy the root's lists of rejections, made by hand, into a run.

There are two, as rejected images leave the pool, while rejected labels matter to the student alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.steps.artifact import Artifact, Inputs
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.stores.rejections import (
    hash_rejections,
    read_rejections,
    rejected_images,
    rejected_labels,
    sort_rejections,
)

REJECTED_IMAGES, REJECTED_LABELS = "rejected.images", "rejected.labels"
"""Names of the steps."""
FILE = "rejected.parquet"


def rejections_config(table: pa.Table) -> dict[str, Any]:
    """Return what a step's configuration says of a list: it changes with what is rejected, not with when or why."""
    return {"count": len(table), "sha256": hash_rejections(table)[:16]}


def copy_images(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `key` and `reason` of the rejected images. Raises ConfigError if they have changed since the plan."""
    return _copy(rejected_images(read_rejections(inputs.runtime.root)), config["rejected"], ["key", "reason"], out)


def copy_labels(config: Mapping[str, Any], inputs: Inputs, out: Path) -> Mapping[str, Any]:
    """Write `key` and `store` of the rejected labels of any version of the teachers `config["teachers"]`.

    Raises ConfigError if they have changed since the plan.
    """
    table = rejected_labels(read_rejections(inputs.runtime.root), config["teachers"])
    return _copy(table, config["rejected"], ["key", "store"], out)


def _copy(table: pa.Table, planned: Mapping[str, Any], columns: list[str], out: Path) -> Mapping[str, Any]:
    current = rejections_config(table)
    if current != planned:
        raise ConfigError(
            f"The list of rejections changed since the run was planned: {planned['count']} rejections with hash "
            f"{planned['sha256']} then, {current['count']} with {current['sha256']} now. Run again."
        )
    # lists of the same rejections must give the same bytes, so times are left out
    write_parquet(out / FILE, sort_rejections(table).select(columns).replace_schema_metadata())
    return {"rejections": len(table)}


def read_copy(artifact: Artifact) -> pa.Table:
    """Return the table that one of the steps wrote."""
    return artifact.load(FILE, read_parquet)
