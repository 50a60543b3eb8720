"""Steps of self-supervised stages. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flows.plan.resized_steps import resized_inputs
from flows.plan.resolve import ResolvedRecipe
from pipeline.data import sampling
from pipeline.errors import error_context
from pipeline.models.weights import weights_digest
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import StageConfig
from pipeline.steps.artifact import LabelCheck, Step, StepKind
from selfsup.stages.budget import fewest_images


def stage_needs(config: Mapping[str, Any]) -> list[Any]:
    """Return what a stage asks of its sets, as `LabelCheck.needs`.

    The batch, in which labelled images have to fit, only where it has such; the seed only where it draws them.
    """
    keys = ("data", "share", "long_tail", "labels", "batch", "validate", "method")
    data, share, tail, labels, batch, *others = (config["stage"].get(key) for key in keys)
    labelled = (labels, batch, config["seed"] if share < 1 else None) if labels else None
    return [*others, data, share, tail, labelled]


STAGE_POOL = StepKind("stage_pool", "ingest.pool:gather_for_stage", early=True)
CHECK = LabelCheck(stage_needs, "selfsup.stages.step:load_stage_data")
STAGE = StepKind(
    "stage",
    "selfsup.stages.step:run_stage",
    version=5,
    trains="stage.batch",
    fewest_images=fewest_images,
    label_check=CHECK,
    location_keys=("stage.start",),
)


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield the stages, before each the step that gathers the images it may see."""
    recipe = resolved.recipe
    starts = {"student": "student", **{stage.name: f"stage.{stage.name}" for stage in resolved.stages}}
    for stage in resolved.stages:
        section = ("stages", stage.name)
        images = {"pool": list(dict.fromkeys(stage.data)), **long_tail_of(stage.long_tail, recipe)}
        yield Step(f"pool.{stage.name}", STAGE_POOL, section, images, resolved.image_steps)
        name, start = f"stage.{stage.name}", starts.get(stage.start or "")
        config, inputs = stage_config(name, stage, start, recipe.seed)
        yield Step(name, STAGE, section, config, (*inputs, *stage_copies(recipe, f"stages.{stage.name}", stage)))


def stage_copies(recipe: Recipe, place: str, stage: StageConfig) -> tuple[str, ...]:
    """Return the steps that copy images for a stage with all filled in. ConfigError as of `resized_inputs`."""
    assert stage.image_size
    return resized_inputs(recipe, place, stage.data, stage.image_size)


def long_tail_of(share: float | None, recipe: Recipe) -> dict[str, Any]:
    """Return what the step that gathers a stage's images has to know of a long tail, if there is to be one."""
    return {} if share is None else {"long_tail": share, "seed": recipe.seed}


def stage_config(name: str, stage: StageConfig, start: str | None, seed: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the configuration and the inputs of a stage under the name of a step.

    `start` is the step whose backbone it starts from; None for none.
    """
    with error_context(f"stages.{stage.name}.start"):
        weights = {"weights": weights_digest(stage.start)} if stage.start and stage.from_weights else {}
    config = {
        "name": name,
        "stage": stage.model_dump(mode="json"),
        "seed": seed,
        "start": start,
        **weights,
        **sampling.version(stage.share < 1 or stage.labels is not None),
    }
    steps = (*((start,) if start else ()), *((f"teacher.{stage.taught_by}",) if stage.taught_by else ()))
    return config, (*steps, f"pool.{stage.name}", *(f"data.{name}" for name in dict.fromkeys(stage.data)))
