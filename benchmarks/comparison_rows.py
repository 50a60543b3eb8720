"""Shared by benchmarks that run a recipe's comparisons: run it, and format a comparison's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import must
from benchmarks.measure import format_mean
from cli.console import Console
from evaluation.backbone_table import MetricColumn
from evaluation.comparison.comparison import Row
from flows.plan.selection import Selection
from pipeline.recipe.comparison import COMPARE
from pipeline.steps.artifact import Artifact


def run(recipe: Path, root: str, overrides: Sequence[str], last: str | None = None) -> Mapping[str, Artifact]:
    """Run a recipe up to the step or comparison `last` (None: as `must run`), and return the artifacts by step."""
    with Console().progress() as progress:
        return must.run(recipe, root, list(overrides), Selection(last), progress=progress).artifacts


def row_cells(row: Row, columns: Sequence[MetricColumn]) -> list[str]:
    """Return name, steps, mean ± deviation in each column, and seconds of one training."""
    means = [format_mean(row_values(row, column)) for column in columns]
    return [row.name, f"{row.setting.steps or 0:,}", *means, f"{row.cost.seconds:,.0f}" if row.cost.seconds else ""]


def row_values(row: Row, column: MetricColumn) -> list[float]:
    """Return a row's values by seed."""
    cell = row.cell(column)
    return list(cell.values) if cell else []


def row_record(row: Row) -> dict[str, Any]:
    """Return a row's name, steps and the cost of one training, JSON-ready."""
    return {"row": row.name, "steps": row.setting.steps, "images": row.cost.images, "seconds": row.cost.seconds}


def base_seconds(artifacts: Mapping[str, Artifact]) -> dict[str, float]:
    """Return the seconds of the steps that the comparisons build on."""
    built_on = {name: made for name, made in artifacts.items() if made.manifest["section"][0] != COMPARE}
    return {name: round(made.manifest["seconds"], 1) for name, made in built_on.items()}
