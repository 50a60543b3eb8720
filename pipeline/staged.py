"""The recipe with stages. To load this file is to load torch, which the methods of the stages need."""

from __future__ import annotations

from typing import Annotated

from pipeline.recipe.recipe import CHOSEN, KindOf, Recipe
from pipeline.recipe.stage import StageConfig


class StagedRecipe(Recipe):
    """A whole run."""

    stages: list[Annotated[StageConfig, KindOf(*CHOSEN["stages"])]] = []
    """Self-supervised pretraining from there to the user's domain, one stage after the other."""
