"""The commands `must bench`: steps of a recipe are measured, on what a run of it left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import DEFAULT_ROOT, Overrides, RecipePath, Root

# Everything that takes time to import is imported by the command that needs it: help comes at once.
# ruff: noqa: PLC0415

commands = typer.Typer(no_args_is_help=True, help="Measure how fast this machine runs a recipe.")


@commands.callback()
def bench() -> None:
    """Measure how fast this machine runs a recipe."""


@commands.command("label")
def label_command(
    recipe: RecipePath,
    root: Root = DEFAULT_ROOT,
    override: Overrides = None,
    images: Annotated[
        int, typer.Option("--images", min=0, help="Images in a timed window; 0: enough for all cores.")
    ] = 0,
    to: Annotated[Path | None, typer.Option("--json", help="Write the numbers here, and a page (.md) beside.")] = None,
) -> None:
    """Measure labelling: what each stage costs, what the machine allows by that, and how near the labeller comes."""
    import rich
    from rich.table import Table

    from flows.run.run import made_inputs
    from pipeline.storage import root as roots
    from benchmarks.measure import save_result
    from pipeline.recipe.recipe import read_recipe
    from benchmarks.label_speed import measure_labelling, table

    read = read_recipe(recipe, override or ())
    step, inputs = made_inputs(read, roots.Root.of(root, read.runtime.cache_gb), "label")
    result = measure_labelling(inputs, step.config["batch"], images)
    head, *lines = table(result)
    shown = Table(*head, box=None, pad_edge=False)
    for line in lines:
        shown.add_row(*line)
    rich.print(shown)
    if to:
        save_result(to, f"Labelling the pool of {read.name}", result, [head, *lines])
