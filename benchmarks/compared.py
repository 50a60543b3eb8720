"""What programs that carry out a recipe have in common: the run, and a comparison's rows for a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import must
from cli.console import Console
from evaluation.backbone_table import MetricColumn
from evaluation.comparison.comparison import Row
from flows.plan.selection import Selection
from pipeline.steps.artifact import Artifact


def run(recipe: Path, root: str, told: Sequence[str], last: str | None = None) -> Mapping[str, Artifact]:
    """The artifacts of a recipe up to the step, the comparison or all comparisons called `last`, None for what `must
    run` makes; `told`: overrides. What is there already is kept.
    """
    with Console().progress() as progress:
        return must.run(recipe, root, list(told), Selection(last), progress=progress).artifacts


def line_of(row: Row, columns: Sequence[MetricColumn]) -> list[str]:
    """Name, steps, mean and deviation in each column, seconds of one training."""
    return [
        row.name,
        f"{row.setting.steps or 0:,}",
        *(told(values_of(row, column)) for column in columns),
        _seconds(row),
    ]


def values_of(row: Row, column: MetricColumn) -> list[float]:
    """A row's values, seed by seed."""
    cell = row.cell(column)
    return list(cell.values) if cell else []


def told(values: Sequence[float]) -> str:
    """Mean and deviation, in hundredths."""
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values) if len(values) > 1 else 0:.1f}"


def record(row: Row) -> dict[str, Any]:
    """A row and what one training took, as JSON."""
    return {"row": row.name, "steps": row.setting.steps, "images": row.cost.images, "seconds": row.cost.seconds}


def seconds_of(artifacts: Mapping[str, Artifact]) -> dict[str, float]:
    """Seconds by step, of what the comparisons build on."""
    return {
        name: round(made.manifest["seconds"], 1) for name, made in artifacts.items() if not name.startswith("compare.")
    }


def _seconds(row: Row) -> str:
    return f"{row.cost.seconds:,.0f}" if row.cost.seconds else ""
