"""Run a recipe from Python, and plan one.

import must
outcome = must.run("recipes/quickstart.yaml", root="must-root", overrides=["student.epochs=3"])
outcome.metrics
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.storage.root import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.plan.plan import Planned
    from flows.plan.selection import Selection
    from flows.run.run import Outcome

# What takes time to import is imported by the function that needs it: a plan needs no torch.
# ruff: noqa: PLC0415

__version__ = "0.1.0"


def run(
    recipe: str | Path,
    root: str | Path = DEFAULT_ROOT,
    overrides: list[str] | None = None,
    steps: Selection | None = None,
    **runtime: Any,
) -> Outcome:
    """Run a recipe, or some of its steps (`flows.plan.selection.Selection`), and return the outcome.

    `root` is a folder's path, or its URL as text.
    `runtime` may hold `progress` and `stop` of `pipeline.steps.runtime.Runtime`.

    Raises ConfigError, DataError or Stopped of `pipeline.errors`, or their base MustError if Prefect fails.
    """
    from flows.execute import execute_recipe
    from flows.run.process_setup import set_up_process
    from flows.run.run import WHOLE_RECIPE
    from pipeline.recipe.reader import read_recipe
    from pipeline.steps.runtime import Runtime
    from pipeline.storage import root as roots

    set_up_process()
    read = read_recipe(Path(recipe), overrides or ())
    here = Runtime.of(read.runtime, roots.Root.of(root, read.runtime.cache_gb), **runtime)
    return execute_recipe(read, here, steps or WHOLE_RECIPE)


def plan(
    recipe: str | Path,
    root: str | Path = DEFAULT_ROOT,
    overrides: list[str] | None = None,
    steps: Selection | None = None,
) -> list[Planned]:
    """What a run would do: every step with what is reused and why the rest is run."""
    from flows.run.run import WHOLE_RECIPE, plan_run
    from pipeline.recipe.reader import read_recipe
    from pipeline.storage import root as roots

    read = read_recipe(Path(recipe), overrides or ())
    return plan_run(read, roots.Root.of(root, read.runtime.cache_gb), steps or WHOLE_RECIPE).planned
