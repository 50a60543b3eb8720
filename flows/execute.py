"""Execute a recipe with the runner that it names."""

from __future__ import annotations

from collections.abc import Mapping

from flows.plan.run_plan import plan_run
from flows.plan.selection import WHOLE_RECIPE, Selection
from flows.run.execution import execute_plan, join_training, step_for_torchrun
from flows.run.run import Outcome, Run, completed_outcome
from flows.run.step_runner import Subprocess
from pipeline.recipe.recipe import Recipe
from pipeline.steps import ranks
from pipeline.steps.artifact import Artifact
from pipeline.steps.runtime import Runtime


def execute_recipe(recipe: Recipe, runtime: Runtime, selection: Selection = WHOLE_RECIPE) -> Outcome:
    """Run the selected steps of a recipe. If there is nothing to do, nothing is started and no run folder made."""
    plan = plan_run(recipe, runtime.root, selection)
    outcome = completed_outcome(plan)
    if outcome:
        return outcome
    if ranks.count() > 1:
        step = step_for_torchrun(recipe, plan)
        if not ranks.is_first():
            return join_training(plan, step, runtime)
    only_report = all(each.artifact for each in plan.planned)
    inline = recipe.runtime.runner == "inline" or only_report
    return execute_plan(recipe, plan, runtime, None if inline else _with_prefect)


def _with_prefect(run: Run, subprocess: Subprocess) -> Mapping[str, Artifact]:
    from flows.orchestration.session import run_with_prefect  # noqa: PLC0415 - Prefect takes seconds to import

    return run_with_prefect(run, subprocess)
