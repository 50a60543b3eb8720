"""The recipes that come with the project: each is read, and its steps are planned."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.plan.steps import build_steps
from pipeline.errors import PROJECT
from pipeline.recipe.reader import read_recipe

RECIPES = sorted(PROJECT.glob("recipes/*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_has_the_name_of_its_file_and_steps_up_to_the_student(recipe: Path) -> None:
    read = read_recipe(recipe)
    assert read.name == recipe.stem
    assert {"pool", "label", "student", "evaluate"} <= {step.name for step in build_steps(read)}
