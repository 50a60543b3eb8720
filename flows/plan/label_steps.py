"""Steps that gather the pool, and label it with the teachers. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flows.plan.resolve import ResolvedRecipe
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import Step, StepKind
from pipeline.stores.naming import LABEL_STEP

POOL = StepKind("pool", "ingest.pool:gather_pool", early=True)
LABEL = StepKind(
    "label",
    "teachers.labelling.labeller:label_pool",
    version=3,
    parts="teachers.labelling.partition",
    incremental_keys=("max_failed", "batch", "require", "labels"),
)


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield the steps that gather the pool and let the teachers label it."""
    recipe = resolved.recipe
    yield Step("pool", POOL, ("pool",), {"pool": recipe.pool}, resolved.image_steps)
    require = {name: teacher.require for name, teacher in recipe.teachers.items() if teacher.require}
    config = {"require": require, **labelled_sets(recipe)}
    yield label_step(LABEL_STEP, recipe, config, ("pool", *pooled_steps(recipe), *resolved.labelling_steps))


def labelled_sets(recipe: Recipe) -> dict[str, Any]:
    """Return the sets of teachers that label some of the pool, as an entry of a step's configuration; {} for none."""
    labels = {name: sorted(sets) for name, each in recipe.teachers.items() if (sets := each.labelled_sets)}
    return {"labels": labels} if labels else {}


def pooled_steps(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the steps that ingest the sets of the pool."""
    return tuple(f"data.{name}" for name in recipe.pool)


def label_step(name: str, recipe: Recipe, config: Mapping[str, Any], inputs: tuple[str, ...]) -> Step:
    """Return a step in which the teachers, or the student, among the inputs label the pool."""
    common = {"max_failed": recipe.labelling.max_failed, "batch": recipe.labelling.batch}
    return Step(name, LABEL, ("labelling",), {**common, **config}, inputs)
