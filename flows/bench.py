"""What `must bench` measures: steps of a recipe, on what a run of it left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich
from rich.table import Table

from flows.run import made_inputs
from pipeline.config import Recipe
from pipeline.roots import Root


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
