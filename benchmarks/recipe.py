"""Run a recipe as it is, and once more with the student from scratch; leave both results as one table.

    python benchmarks/recipe.py recipes/photos.yaml [--root must-root] [--to benchmarks/results/photos.json]

Teachers and labels are made once: the second run reuses them. Steps that a run finds made count with the seconds that
making them took.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

from pathlib import Path
from typing import Annotated, Any

import typer

import must
from benchmarks.measure import circumstances, save_result
from cli.console import Console
from evaluation.metric_table import MetricLine, read_lines
from pipeline.recipe.reader import read_recipe
from pipeline.training.device import find_device

SCRATCH = "student.weights=null"


def measure(recipe: Path, root: str, overrides: list[str]) -> tuple[dict[str, Any], list[MetricLine]]:
    """Run, and the records of its metrics, seconds by step, and how the student was run."""
    with Console().progress() as progress:
        outcome = must.run(recipe, root, overrides, progress=progress)
    lines, _ = read_lines(outcome.metrics)
    manifests = {name: made.manifest for name, made in outcome.artifacts.items()}
    found = {
        "overrides": overrides,
        "metrics": outcome.metrics,
        "seconds": {name: round(manifest["seconds"], 1) for name, manifest in manifests.items()},
        "student": {key: manifests["student"]["counts"][key] for key in ("images", "weights", "warnings", "choice")},
    }
    return found, lines


def rows(started: list[MetricLine], scratch: list[MetricLine]) -> list[list[str]]:
    """The table: a line per metric, with the student from scratch beside the others."""
    head = ["teacher", "task", "set", "n", "metric", "student", "of teacher", "from scratch", "teacher", "baseline"]
    table = [head]
    for line, other in zip(started, scratch, strict=True):
        place, arrow = line.target, "↑" if line.better == "higher" else "↓"
        values = [_shown(line.values.get(role)) for role in ("student", "teacher", "baseline")]
        share = "" if line.share is None else f"{line.share:.0%}"
        where = [place.head, place.task, f"{place.dataset}/{place.split}", str(place.n), f"{line.metric} {arrow}"]
        table.append([*where, values[0], share, _shown(other.values.get("student")), *values[1:]])
    return table


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main(
    recipe: Path,
    root: Annotated[str, typer.Option(help="Folder for artifacts and runs.")] = must.DEFAULT_ROOT,
    to: Annotated[Path | None, typer.Option(help="The JSON file to write; a page goes beside it.")] = None,
) -> None:
    """Measure the recipe's student, started as the recipe says and from scratch."""
    name = read_recipe(recipe).name
    measured = circumstances(find_device("auto"))
    started, lines = measure(recipe, root, [])
    scratch, other = measure(recipe, root, [SCRATCH])
    measured["seconds"] = round(sum(started["seconds"].values()))
    result = {"measured": measured, "started": started, "scratch": scratch}
    path = to or Path("benchmarks/results") / f"{name}.json"
    save_result(path, f"The recipe {name}: {measured['seconds'] / 60:.0f} minutes of work", result, rows(lines, other))
    print(f"Wrote {path} and {path.with_suffix('.md')}")


if __name__ == "__main__":
    typer.run(main)
