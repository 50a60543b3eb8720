"""Steps that copy a set's training images at the size that trainings need, if the recipe asks for it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from flows.plan.resolve import ResolvedRecipe
from ingest.resized import RESIZED
from pipeline.errors import ConfigError
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import Step, StepKind

COPY = StepKind(RESIZED, "ingest.resized:store_resized", incremental_keys=())


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield a step for each set under `resized`."""
    for name, short_side in resolved.recipe.resized.items():
        config = {"set": name, "short_side": short_side}
        yield Step(f"{RESIZED}.{name}", COPY, (RESIZED, name), config, (f"data.{name}",))


def resized_inputs(recipe: Recipe, place: str, sets: Iterable[str], image_size: int) -> tuple[str, ...]:
    """Return the steps that copy images of these sets, for a training at this place in the recipe.

    Raises ConfigError if copies are smaller than its images of side `image_size`.
    """
    copied = [name for name in dict.fromkeys(sets) if name in recipe.resized]
    for name in copied:
        if recipe.resized[name] < image_size:
            raise ConfigError(
                f"resized.{name} is {recipe.resized[name]}, but {place} reads this set at an image_size of "
                f"{image_size}, which its images would be enlarged to: give {image_size} or more, or leave it out."
            )
    return tuple(f"{RESIZED}.{name}" for name in copied)


def check_copies_are_read(steps: Sequence[Step]) -> None:
    """Raise ConfigError for a set under `resized` that no training reads."""
    read = {name for step in steps for name in step.inputs}
    for step in steps:
        if step.kind.name == RESIZED and step.name not in read:
            raise ConfigError(
                f"{step.name} is given, but no training reads this set: teachers read that under their key data, the "
                "student its pool, stages and comparisons their data, and fine-tuning what it is to measure on. Leave "
                "it out."
            )
