"""Whether the parts of a recipe fit together, as far as names, labels and schedules tell. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import tasks
from flows.plan.comparison_steps import check_comparing
from flows.plan.evaluation_steps import Spaces, check_measuring
from flows.plan.stage_steps import check_classes
from ingest.dataset import check_truth, taught_space
from pipeline.errors import ConfigError, error_context, require_one_of
from pipeline.recipe.base import FitConfig
from pipeline.recipe.recipe import Recipe


def check_fits(recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError for a task, a set, a required metric, a weight or an evaluation that can't be as it is said."""
    for name, teacher in recipe.teachers.items():
        require_one_of(teacher.task, tasks.names(), f"teachers.{name}.task")
        data: str | None = getattr(teacher, "data", None)
        if data is not None:
            taught_space(name, teacher.task, data, spaces[data])
        if teacher.require and not isinstance(teacher, FitConfig):
            raise ConfigError(
                f"teachers.{name}.require is {teacher.require!r}, but only teachers that are trained here are measured "
                f"before they label; leave it out for kind {teacher.kind!r}."
            )
    recipe.student.check_weights({name: isinstance(teacher, FitConfig) for name, teacher in recipe.teachers.items()})
    for name, sets in recipe.student.truths.items():
        _check_truths(name, sets, recipe, spaces)
    for stage in recipe.stages:
        with error_context(f"stages.{stage.name}"):
            check_classes(stage, spaces)
    for name in recipe.evaluate.sets:
        _check_evaluated(name, recipe, spaces)
    check_measuring(recipe, spaces)
    check_comparing(recipe, spaces)


def _check_truths(name: str, sets: Sequence[str], recipe: Recipe, spaces: Spaces) -> None:
    """Sets of true labels need the teacher's task, and its classes where they are known before the run."""
    teacher = recipe.teachers[name]
    data: str | None = getattr(teacher, "data", None)
    for other in sets:
        space = taught_space(name, teacher.task, data or other, spaces[data or other])
        check_truth(name, space, other, spaces[other])


def _check_evaluated(name: str, recipe: Recipe, spaces: Spaces) -> None:
    """A set to measure on needs a teacher of its task, and of its classes where they are known before the run."""
    for teacher in recipe.teachers.values():
        data: str | None = getattr(teacher, "data", None)
        known = spaces[data].get(teacher.task) if data is not None else None
        if teacher.task in spaces[name] and known in (None, spaces[name][teacher.task]):
            return
    there = ", ".join(sorted(spaces[name])) or "nothing"
    raise ConfigError(
        f"evaluate.sets names {name!r}, which has labels for {there}: "
        "no teacher has a task and classes in common with it."
    )
