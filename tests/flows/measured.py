"""The tiny recipe with a set that backbones can be probed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.schedules import FinetuneSchedule
from flows.plan.selection import Selection
from flows.plan.steps import build_steps
from pipeline.recipe.augment import AugmentConfig
from pipeline.recipe.reader import parse_recipe
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import Step
from tests.flows.tiny import RECIPE

KINDS = "  kinds: {kind: scenes, count: 12, val: 3, test: 5, seed: 3, size: 48, tasks: [classification]}\nshard_images"
MEASURED = RECIPE.replace("shard_images", KINDS)
SMALL = """
compare: {all: {data: [kinds], methods: {simclr: {method: simclr}}, steps: [1, 2], batch: 4, seeds: 1, probes: [knn],
  labels: [6, all]}}
"""
"""A comparison of seconds."""
LAST = Selection("compare")


def two_steps(images: int, there: int) -> Sequence[Mapping[str, Any]]:
    return [{"batch": 4, "steps": 2}]


TINY = FinetuneSchedule(1, "two steps", two_steps, AugmentConfig())
"""A schedule of seconds."""


def written(path: Path, section: str) -> Path:
    path.write_text(MEASURED + section, encoding="utf-8")
    return path


def recipe_of(section: str) -> Recipe:
    return parse_recipe(MEASURED + section, "recipe")


def steps_of(section: str) -> dict[str, Step]:
    """Return the steps of the recipe with one more section, by name."""
    return {step.name: step for step in build_steps(recipe_of(section))}
