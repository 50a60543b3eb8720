"""The plan of a run on a root, and the inputs of one of its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.plan.run_plan import find_inputs
from pipeline.errors import DataError
from pipeline.recipe.reader import parse_recipe
from pipeline.storage.root import Root


def test_find_inputs_names_steps_that_were_not_made(tmp_path: Path) -> None:
    recipe = (
        "{name: none, data: {a: {kind: scenes, count: 2, seed: 1}}, teachers: {g: {kind: analytic}}, pool: [a], "
        "student: {weighting: equal}}"
    )
    with pytest.raises(DataError, match=r"nothing for pool, data.a, teacher.g .* `must label` with this recipe"):
        find_inputs(parse_recipe(recipe, "test"), Root.of(tmp_path), "label")
