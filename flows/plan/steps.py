"""Build the steps of a recipe, in an order in which they can run. No torch, no Prefect.

Every file `flows/plan/*_steps.py` defines kinds of steps, and a function `plan_steps(resolved)` that yields the steps
of one part of the recipe. To add a kind of step, add such a file; there is nothing to register.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pyarrow as pa

from flows.plan.names import require_known_names
from flows.plan.resized_steps import check_copies_are_read
from flows.plan.resolve import ResolvedRecipe, resolve
from flows.plan.validate import validate
from pipeline.recipe.plugins import modules
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import Step
from pipeline.stores.rejections import NO_REJECTIONS

ORDER = ("data", "resized", "teacher", "label", "student", "stage", "evaluation", "comparison")
"""The parts of a recipe, each before those that read what its steps leave; files that are not named here come last."""
SUFFIX = "_steps"


def build_steps(recipe: Recipe, rejects: pa.Table = NO_REJECTIONS) -> list[Step]:
    """Return the steps of a recipe, inputs before the steps that read them, on a root with this list of rejections.

    Raises ConfigError, beginning with the place in the recipe, if its data is not there, or its parts do not fit.
    """
    require_known_names(recipe)
    return plan_recipe(resolve(recipe, rejects))


def plan_recipe(resolved: ResolvedRecipe) -> list[Step]:
    """Return the steps of a resolved recipe. Raises ConfigError if its parts do not fit."""
    validate(resolved)
    steps = [step for module in _planning_modules() for step in importlib.import_module(module).plan_steps(resolved)]
    check_copies_are_read(steps)
    return sorted(steps, key=lambda step: not step.kind.early)


def _planning_modules() -> Iterator[str]:
    found = {name.removesuffix(SUFFIX): path for name, path in modules("flows.plan").items() if name.endswith(SUFFIX)}
    yield from (found[part] for part in ORDER)
    yield from (path for part, path in found.items() if part not in ORDER)
