"""What `must bench` measures: steps of a recipe, on what a run of it left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from flows.run import prepare
from pipeline.artifacts import Inputs, Step
from pipeline.config import Recipe
from pipeline.errors import DataError
from pipeline.roots import Root
from pipeline.runtime import Runtime


def made_inputs(recipe: Recipe, root: Root, name: str) -> tuple[Step, Inputs]:
    """The step `name` and the artifacts that it reads. DataError if they were not made yet, or for other settings."""
    planned = {each.step.name: each for each in prepare(recipe, root).planned}
    step = planned[name].step
    made = {each: planned[each].artifact for each in step.inputs}
    missing = [each for each, artifact in made.items() if artifact is None]
    if missing:
        raise DataError(
            f"{root}: there is nothing for {', '.join(missing)} as the recipe {recipe.name!r} has it now: "
            "`must run` with this recipe and root first; `must plan` says what differs."
        )
    present = {each: artifact for each, artifact in made.items() if artifact}
    return step, Inputs(present, Runtime.of(recipe.runtime, root))


def bench_labelling(recipe: Recipe, root: Root, images: int, to: Path | None) -> dict[str, Any]:
    """Measure the recipe's labelling, print it, and keep it in `to` (JSON, and a page beside it) if there is one."""
    from pipeline.bench import save_result  # noqa: PLC0415 - needs torch
    from teachers.labelling.bench import measure_labelling, table  # noqa: PLC0415 - needs torch

    step, inputs = made_inputs(recipe, root, "label")
    result = measure_labelling(inputs, step.config["batch"], images)
    head, *lines = table(result)
    shown = Table(*head, box=None, pad_edge=False)
    for line in lines:
        shown.add_row(*line)
    rich.print(shown)
    if to:
        save_result(to, f"Labelling the pool of {recipe.name}", result, [head, *lines])
    return result
