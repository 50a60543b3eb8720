"""Measure a recipe's student, as the recipe starts it and from scratch, against teachers and baselines.

    python -m benchmarks.recipe recipes/photos.yaml [--root must-root] [--to benchmarks/results/photos.json]

The second run reuses teachers and labels. Reused steps count with the seconds that they took when they were made.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

from pathlib import Path
from typing import Annotated, Any

import typer

import must
from benchmarks.measure import RESULTS, describe_environment, save_result
from cli.console import Console
from cli.options import RootOption
from evaluation.metric_table import ARROWS, MetricLine, read_lines
from pipeline.recipe.reader import read_recipe
from pipeline.training.device import find_device

SCRATCH = "student.weights=null"


def measure(recipe: Path, root: str, overrides: list[str]) -> tuple[dict[str, Any], list[MetricLine]]:
    """Run the recipe; return a record of its metrics, seconds by step and the student, and its metric lines."""
    with Console().progress() as progress:
        outcome = must.run(recipe, root, overrides, progress=progress)
    lines, _ = read_lines(outcome.metrics)
    manifests = {name: artifact.manifest for name, artifact in outcome.artifacts.items()}
    record = {
        "overrides": overrides,
        "metrics": outcome.metrics,
        "seconds": {name: round(manifest["seconds"], 1) for name, manifest in manifests.items()},
        "student": {key: manifests["student"]["counts"][key] for key in ("images", "weights", "warnings", "choice")},
    }
    return record, lines


def rows(started: list[MetricLine], scratch: list[MetricLine]) -> list[list[str]]:
    """Return a table with a line per metric, with the student from scratch beside the others."""
    table = [["teacher", "task", "set", "n", "metric", "student", "of teacher", "from scratch", "teacher", "baseline"]]
    for line, other in zip(started, scratch, strict=True):
        target, arrow = line.target, ARROWS[line.better]
        values = [_shown(line.values.get(role)) for role in ("student", "teacher", "baseline")]
        share = "" if line.share is None else f"{line.share:.0%}"
        names = [target.head, target.task, f"{target.dataset}/{target.split}", str(target.n), f"{line.metric} {arrow}"]
        table.append([*names, values[0], share, _shown(other.values.get("student")), *values[1:]])
    return table


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main(
    recipe: Path,
    root: RootOption = must.DEFAULT_ROOT,
    to: Annotated[Path | None, typer.Option(help="JSON file to write, with a Markdown page beside it.")] = None,
) -> None:
    """Measure, print, and write the result."""
    name = read_recipe(recipe).name
    environment = describe_environment(find_device("auto"))
    started, lines = measure(recipe, root, [])
    scratch, other = measure(recipe, root, [SCRATCH])
    environment["seconds"] = round(sum(started["seconds"].values()))
    result = {"measured": environment, "started": started, "scratch": scratch}
    path, minutes = to or RESULTS / f"{name}.json", environment["seconds"] / 60
    save_result(path, f"The recipe {name}: {minutes:.0f} minutes of work", result, rows(lines, other))
    print(f"Wrote {path} and {path.with_suffix('.md')}")


if __name__ == "__main__":
    typer.run(main)
