"""Steps that compare self-supervised methods on the same images. No torch but what the methods' own settings load."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from flows.plan.evaluation_steps import (
    FINETUNE,
    PROBE,
    finetune_config,
    measurement_settings,
    probe_config,
    start_config,
    start_inputs,
)
from flows.plan.resized_steps import resized_inputs
from flows.plan.resolve import ResolvedRecipe, ResolvedTrial
from flows.plan.stage_steps import STAGE, STAGE_POOL, long_tail_of, stage_config, stage_copies
from pipeline.data import sampling
from pipeline.recipe.base import FitConfig
from pipeline.recipe.comparison import COMPARE
from pipeline.recipe.evaluation import StartConfig
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import COMPARED
from pipeline.steps.artifact import Step, StepKind

POOL = dataclasses.replace(STAGE_POOL, name="compare_pool")
METHOD = dataclasses.replace(STAGE, name="compare_method", trains="")  # rows are many: they take a GPU each
SUPERVISED = StepKind("compare_supervised", "evaluation.comparison.supervised_baseline:train", version=4)
COMPARE_PROBE = dataclasses.replace(PROBE, name="compare_probe")
COMPARE_FINETUNE = dataclasses.replace(FINETUNE, name="compare_finetune")


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield the steps of all comparisons: the images that methods see, and every row's training and measurements."""
    recipe = resolved.recipe
    for name, trials in resolved.comparisons.items():
        config = recipe.compare[name]
        images = {"pool": list(dict.fromkeys(config.data)), **long_tail_of(config.long_tail, recipe)}
        yield Step(f"pool.{COMPARED}{name}", POOL, (COMPARE, name), images, resolved.image_steps)
        for trial in trials:
            yield from _trial_steps(recipe, name, trial)


def _trial_steps(recipe: Recipe, comparison: str, resolved: ResolvedTrial) -> Iterator[Step]:
    """Yield the training of a row, if it has one, and its measurements."""
    config, trial = recipe.compare[comparison], resolved.trial
    name, section = f"{COMPARE}.{comparison}.{trial.name}", (COMPARE, comparison)
    seed, measured = recipe.seed + trial.seed, resolved.start
    if resolved.stage:
        where = (*section, "methods", trial.method)
        method, inputs = stage_config(name, resolved.stage, resolved.start.step, seed)
        yield Step(name, METHOD, where, method, (*inputs, *stage_copies(recipe, ".".join(where), resolved.stage)))
    elif resolved.supervised:
        yield _supervised_step(recipe, comparison, resolved, resolved.supervised)
    if resolved.stage or resolved.supervised:
        measured = StartConfig(name=trial.name, step=name, image_size=resolved.start.image_size)
    settings = measurement_settings(config, recipe) | {"set": config.measured_on, "splits": config.splits, "seeds": 1}
    settings |= {"seed": seed, "trial": trial.to_json()}
    if config.probes:
        step = f"{name}.probe"
        yield Step(step, COMPARE_PROBE, section, *probe_config(step, measured, settings))
    if config.finetune:
        step = f"{name}.finetune"
        finetuned, inputs = finetune_config(step, measured, settings)
        inputs += _labelled_copies(recipe, comparison, measured)
        yield Step(step, COMPARE_FINETUNE, section, finetuned, inputs)


def _labelled_copies(recipe: Recipe, comparison: str, start: StartConfig) -> tuple[str, ...]:
    """Return the step that copies images of the set with labels, for trainings with labels."""
    measured_on = recipe.compare[comparison].measured_on
    return resized_inputs(recipe, f"{COMPARE}.{comparison}", [measured_on], start.image_size)


def _supervised_step(recipe: Recipe, comparison: str, resolved: ResolvedTrial, schedule: FitConfig) -> Step:
    """Return supervised training on the images that the methods see."""
    config, trial = recipe.compare[comparison], resolved.trial
    name, pool = f"{COMPARE}.{comparison}.{trial.name}", f"pool.{COMPARED}{comparison}"
    settings: dict[str, Any] = {
        "name": name,
        **start_config(resolved.start),
        "set": config.measured_on,
        "pool": pool,
        "share": trial.share,
        "supervised": schedule.model_dump(mode="json"),
        "width": recipe.student.width,
        "proposals": recipe.student.proposals,
        "seed": recipe.seed + trial.seed,
        **sampling.version(trial.share != 1),
    }
    copies = _labelled_copies(recipe, comparison, resolved.start)
    inputs = start_inputs(resolved.start, pool, f"data.{config.measured_on}", *copies)
    return Step(name, SUPERVISED, (COMPARE, comparison), settings, inputs)
