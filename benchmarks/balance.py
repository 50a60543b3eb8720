"""Measure how a student of ten teachers weighs their losses best: by hand, equally, by uncertainty, by running means.

    python -m benchmarks.balance                  # one seed
    python -m benchmarks.balance --seeds 0,1,2    # a row that is in the results is not measured again

The quick start's teachers and their data, and four functions of the image as teachers beside them. The student is
measured on the five tasks that have true labels, on held-out scenes like the teachers' and on shifted ones.
"""

# ruff: noqa: E402 - the process is set up before torch is loaded
from __future__ import annotations

from flows.run.process_setup import set_up_process

set_up_process()

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import rankdata

import must
from benchmarks.measure import RESULTS, describe_environment, read_partial_result, save_result
from cli.console import Console
from cli.options import RootOption
from evaluation.metric_table import ARROWS, read_lines
from pipeline.errors import PROJECT
from pipeline.training.device import find_device

RECIPE = PROJECT / "recipes" / "quickstart.yaml"
FUNCTIONS = ("gabor", "hog", "edges", "colors")
TEN_HEADS = (
    *(f"teachers.{name}={{kind: analytic, function: {name}, image_size: 96}}" for name in FUNCTIONS),
    "labelling.student=false",
)
SMALL = "student.loss_weights={imagenet: 0.1, gabor: 0.1, hog: 0.1, edges: 0.1, colors: 0.1}"
WEIGHTINGS: dict[str, tuple[str, ...]] = {
    "MuST's rule; 0.1 for the others": (SMALL,),
    "all equal": ("student.weighting=equal", "student.loss_weights={}"),
    "by uncertainty": ("student.weighting=uncertainty", "student.loss_weights={}"),
    "by running means": ("student.weighting=running", "student.loss_weights={}"),
}
TITLE = "A student of ten teachers, by how the losses of its heads are weighted; leading metrics, and mean ranks"


def measure(root: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the recipe; return the student's leading metrics by column, and the weights that it ended with."""
    with Console().progress() as progress:
        outcome = must.run(RECIPE, root, [*TEN_HEADS, *overrides], progress=progress)
    columns: dict[str, float] = {}
    for line in read_lines(outcome.metrics)[0]:
        name = f"{line.target.head} on {line.target.dataset}"
        if not any(column.startswith(f"{name}, ") for column in columns):  # the leading metric comes first
            columns[f"{name}, {line.metric} {ARROWS[line.better]}"] = line.values["student"]
    return {"metrics": columns, "weights": outcome.artifacts["student"].counts["weights"]}


def mean_ranks(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return each row's mean rank over the columns, 1 being the best."""
    columns = list(next(iter(rows.values())))
    signs = [-1 if ARROWS["higher"] in column else 1 for column in columns]
    ranks = [
        rankdata([sign * row[column] for row in rows.values()]) for sign, column in zip(signs, columns, strict=True)
    ]
    return dict(zip(rows, np.mean(ranks, axis=0).tolist(), strict=True))


def summary(seeds: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the table: means over the seeds that have all rows."""
    whole = [measured for measured in seeds.values() if len(measured) == len(WEIGHTINGS)] or list(seeds.values())[:1]
    names = [name for name in WEIGHTINGS if all(name in measured for measured in whole)]
    columns = list(whole[0][names[0]]["metrics"])
    ranks = [mean_ranks({name: measured[name]["metrics"] for name in names}) for measured in whole]
    table = [["weights", *columns, "mean rank", "seeds"]]
    for name in names:
        means = [statistics.mean(measured[name]["metrics"][column] for measured in whole) for column in columns]
        rank = statistics.mean(rank[name] for rank in ranks)
        table.append([name, *(f"{mean:.3f}" for mean in means), f"{rank:.2f}", str(len(whole))])
    return table


def main(
    root: RootOption = must.DEFAULT_ROOT,
    seeds: Annotated[str, typer.Option(help="Seeds of everything random, teachers too, with commas.")] = "0",
) -> None:
    """Measure what is not in the results yet, print, and write `balance-DEVICE` to the results."""
    device = find_device("auto")
    file = RESULTS / f"balance-{device}.json"
    for seed in seeds.split(","):
        for name, weighting in WEIGHTINGS.items():
            result = read_partial_result(file, RECIPE, TEN_HEADS, "seeds")
            if name in result["seeds"].get(seed, {}):
                typer.echo(f"{name}, seed {seed}, is in {file.name}")
                continue
            environment = describe_environment(device)
            measured = measure(root, [*weighting, f"seed={seed}"])
            result["seeds"].setdefault(seed, {})[name] = {**measured, "measured": environment}
            command = f"python -m benchmarks.balance --seeds {','.join(result['seeds'])}"
            result["measured"] = {**environment, "command": command}
            save_result(file, TITLE, result, summary(result["seeds"]))


if __name__ == "__main__":
    typer.run(main)
