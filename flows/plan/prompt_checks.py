"""Check the teachers whose models are given the boxes of another teacher, and say in which order they are made."""

from __future__ import annotations

import tasks
from pipeline.errors import ConfigError, require_one_of
from pipeline.recipe.recipe import Recipe
from pipeline.stores.labels import LabelSpace
from tasks.instances import InstanceLabel


def check_prompters(recipe: Recipe) -> None:
    """Raise ConfigError for a teacher that takes boxes of one that is not there, makes none, or needs boxes of it."""
    for name, teacher in recipe.teachers.items():
        if teacher.prompted_by is not None:
            _check_prompter(name, teacher.prompted_by, recipe)


def _check_prompter(name: str, prompter: str, recipe: Recipe) -> None:
    place, teachers = f"teachers.{name}.boxes", recipe.teachers
    able = [
        other for other in teachers if _makes_boxes(other, recipe) and name not in [other, *prompters(other, recipe)]
    ]
    offered = f"{' or '.join(able)} would work" if able else "add a teacher of the task detection or masks"
    if prompter not in teachers:
        require_one_of(prompter, able, place)
    if not _makes_boxes(prompter, recipe):
        task = teachers[prompter].task
        raise ConfigError(f"{place}: teacher {prompter!r} is of task {task!r}, and makes no boxes: {offered}.")
    if prompter == name:
        raise ConfigError(f"{place}: {prompter!r} is the teacher itself, which needs boxes of another one: {offered}.")
    if prompter not in able:
        circle = " from ".join(map(repr, [name, *prompters(name, recipe)]))
        raise ConfigError(f"{place}: {circle} take boxes in a circle, so that none of them can begin: {offered}.")


def _makes_boxes(name: str, recipe: Recipe) -> bool:
    return isinstance(tasks.label(LabelSpace(recipe.teachers[name].task)), InstanceLabel)


def prompters(name: str, recipe: Recipe) -> list[str]:
    """Return the teachers that have to be there before teacher `name`: whose boxes it takes, whose boxes that takes...

    A circle ends where it comes to one of them again.
    """
    found: list[str] = []
    following = recipe.teachers[name].prompted_by
    while following in recipe.teachers and following not in found:
        found.append(following)
        following = recipe.teachers[following].prompted_by
    return found
