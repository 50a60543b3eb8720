"""The Python API: run a recipe, or plan a run.

import must
outcome = must.run("recipes/quickstart.yaml", root="must-root", overrides=["student.epochs=3"])
outcome.metrics
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.storage import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.plan.plan import Planned
    from flows.plan.selection import Selection
    from flows.run.run import Outcome

# Slow imports are in the functions that need them, so that planning loads no torch, unless a recipe has stages.
# ruff: noqa: PLC0415

__version__ = "0.1.0"


def run(
    recipe: str | Path,
    root: str | Path = DEFAULT_ROOT,
    overrides: list[str] | None = None,
    steps: Selection | None = None,
    **runtime: Any,
) -> Outcome:
    """Run a recipe, or a selection of its steps (`flows.plan.selection.Selection`), and return the outcome.

    `root` is a folder's path or a URL.
    `runtime` may hold `progress` and `stop` of `pipeline.steps.runtime.Runtime`.

    Raises ConfigError, DataError, Shortage, Stopped or Interrupted of `pipeline.errors`, or MustError itself if Prefect
    fails.
    """
    from flows.execute import execute_recipe
    from flows.plan.selection import WHOLE_RECIPE
    from flows.run.process_setup import set_up_process
    from pipeline.recipe.reader import read_recipe
    from pipeline.steps.runtime import Runtime
    from pipeline.storage.root import Root

    set_up_process()
    parsed = read_recipe(Path(recipe), overrides or ())
    opened = Root.of(root, parsed.runtime.cache_gb)
    return execute_recipe(parsed, Runtime.of(parsed.runtime, opened, **runtime), steps or WHOLE_RECIPE)


def plan(
    recipe: str | Path,
    root: str | Path = DEFAULT_ROOT,
    overrides: list[str] | None = None,
    steps: Selection | None = None,
) -> list[Planned]:
    """Return a recipe's steps, each with the artifact that a run would reuse, or why the step would run."""
    from flows.plan.run_plan import plan_run
    from flows.plan.selection import WHOLE_RECIPE
    from pipeline.recipe.reader import read_recipe
    from pipeline.storage.root import Root

    parsed = read_recipe(Path(recipe), overrides or ())
    return plan_run(parsed, Root.of(root, parsed.runtime.cache_gb), steps or WHOLE_RECIPE).planned
