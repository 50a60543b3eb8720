"""The steps of self-supervised stages. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ingest.true_labels import class_names
from pipeline.data import sampling
from pipeline.errors import error_context
from pipeline.models.weights import weights_digest
from pipeline.recipe.base import BaseConfig
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import StageConfig, labelled_images
from pipeline.steps.artifact import Step
from pipeline.stores.labels import LabelSpace

YOUNGER: Mapping[str, Any] = {"truths": {}, "nesterov": False, "drops": [], "long_tail": None}
"""Keys that came later, and the values by which nothing changes."""


def settings(section: BaseConfig) -> dict[str, Any]:
    """What a section says, without keys that came after many an artifact and are not made use of: those stay good."""
    said = section.model_dump(mode="json")
    return {key: value for key, value in said.items() if key not in YOUNGER or value != YOUNGER[key]}


NOT_AT_ALL: Mapping[str, Any] = {}


class Training(NamedTuple):
    """What a stage is made of, beside what its section says: the step it starts from, None for none, and the seed."""

    start: str | None
    seed: int


def stage_steps(recipe: Recipe, seen: tuple[str, ...]) -> Iterator[Step]:
    """The self-supervised stages, before each the step that says which images it may see; `seen`: the steps that tell
    which images there are in any set, and which were rejected.
    """
    stages = recipe.chain()
    begins = {"student": "student", **{stage.name: f"stage.{stage.name}" for stage in stages}}
    for stage in stages:
        yield pool_step(stage.name, stage.data, seen, thinning(stage.long_tail, recipe))
        yield stage_step(f"stage.{stage.name}", stage, Training(begins.get(stage.start or ""), recipe.seed))


def thinning(long_tail: float | None, recipe: Recipe) -> Mapping[str, Any]:
    """What the step that finds out which images a stage may see is told of a long tail, if there is to be one."""
    return NOT_AT_ALL if long_tail is None else {"long_tail": long_tail, "seed": recipe.seed}


def pool_step(stage: str, data: Sequence[str], seen: tuple[str, ...], thinned: Mapping[str, Any] = NOT_AT_ALL) -> Step:
    """Which images of these sets a stage may see."""
    config = {"pool": list(dict.fromkeys(data)), **thinned}
    return Step(f"pool.{stage}", "ingest.pool:gather_for_stage", config, seen)


def stage_step(name: str, stage: StageConfig, training: Training) -> Step:
    """A stage under the name of a step."""
    with error_context(f"stages.{stage.name}.start"):
        weights = {"weights": weights_digest(stage.start)} if stage.start and stage.from_weights else {}
    drawn = sampling.version(stage.share < 1 or stage.labels is not None)
    config = {
        "name": name,
        "stage": settings(stage),
        "seed": training.seed,
        "start": training.start,
        **weights,
        **drawn,
    }
    before = (training.start,) if training.start else ()
    inputs = (*before, f"pool.{stage.name}", *(f"data.{each}" for each in dict.fromkeys(stage.data)))
    return Step(name, "selfsup.stages.step:run_stage", config, inputs, resumes=True)


def check_classes(stage: StageConfig, spaces: Mapping[str, Mapping[str, LabelSpace]]) -> None:
    """Raise ConfigError if a stage asks for classes, and its sets have none, or not so many."""
    if stage.labels is not None:
        with error_context("labels"):
            labelled_images(stage, class_names(stage.data, spaces))
    if stage.long_tail is not None:
        with error_context("long_tail"):
            class_names(stage.data, spaces)
