"""The steps that measure backbones against each other. No torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.corruptions import VERSION as CORRUPTIONS
from evaluation.schedules import SCHEDULES
from pipeline.data import sampling
from pipeline.errors import ConfigError, error_context, require_one_of
from pipeline.models.weights import weights_digest
from pipeline.recipe.evaluation import Measuring, StartConfig, check_names, start_of
from pipeline.recipe.plugins import modules
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.stage import KEPT
from pipeline.steps.artifact import Step
from pipeline.stores.labels import LabelSpace

PROBES = "evaluation.probes"
Spaces = Mapping[str, Mapping[str, LabelSpace]]
"""By set and task, what its labels mean."""


def measuring_steps(recipe: Recipe, spaces: Spaces) -> Iterator[Step]:
    """The steps that the recipe's `evaluate` asks for: a step for each backbone, set, and way of measuring."""
    config = recipe.evaluate
    told = {**how(config, recipe), "splits": config.splits, "seed": recipe.seed}
    probed = probed_sets(recipe, spaces)
    for start in backbone_starts(recipe):
        for name in probed:
            yield probe_step(f"probe.{start.name}.{name}", start, {**told, "set": name})
        for name in config.finetune:
            yield finetune_step(f"finetune.{start.name}.{name}", start, {**told, "set": name})


def probed_sets(recipe: Recipe, spaces: Spaces) -> list[str]:
    """The sets to probe on. ConfigError if one that is named has no class labels, or none has."""
    config, there = recipe.evaluate, [name for name, found in spaces.items() if "classification" in found]
    if not config.probes:
        return []
    if not there:
        raise ConfigError(f"evaluate.probes is {config.probes}, but no set has class labels to probe with.")
    wanted = there if config.probe_sets is None else config.probe_sets
    return [require_one_of(name, there, "evaluate.probe_sets: set with class labels") for name in wanted]


def how(config: Measuring, recipe: Recipe) -> dict[str, Any]:
    """What both kinds of measuring are told, and what each is told beside."""
    told = config.model_dump(mode="json", include={"probes", "schedule", "labels", "seeds", "corruptions"})
    return {**told, "width": recipe.student.width, "proposals": recipe.student.proposals}


def probe_step(name: str, start: StartConfig, told: Mapping[str, Any]) -> Step:
    """The probes of a backbone on the set `told["set"]`."""
    keys = ("set", "splits", "probes", "labels", "seeds", "seed", "corruptions")
    versions = {each: importlib.import_module(f"{PROBES}.{each}").VERSION for each in told["probes"]}
    versions |= _parts(told)
    config = {"name": name, **about(start), **{key: told[key] for key in keys}, **_row(told), "versions": versions}
    return Step(name, "evaluation.probing:probe", config, reads(start, f"data.{told['set']}"))


def finetune_step(name: str, start: StartConfig, told: Mapping[str, Any]) -> Step:
    """Fine-tuning from a backbone on the set `told["set"]`."""
    keys = ("set", "splits", "schedule", "labels", "seeds", "seed", "corruptions", "width", "proposals")
    versions = {told["schedule"]: SCHEDULES[told["schedule"]].version} | _parts(told)
    config = {"name": name, **about(start), **{key: told[key] for key in keys}, **_row(told), "versions": versions}
    incremental_keys = ("labels", "seeds")
    return Step(
        name,
        "evaluation.finetuning:finetune",
        config,
        reads(start, f"data.{told['set']}"),
        incremental_keys=incremental_keys,
    )


def about(start: StartConfig) -> dict[str, Any]:
    """What a step that begins with a backbone is told of it; other weights under the same name are another start."""
    digest = {"weights": weights_digest(start.weights)} if start.weights else {}
    return {"start": start.model_dump(mode="json"), **digest}


def _parts(told: Mapping[str, Any]) -> dict[str, int]:
    """The versions of what measurements have in common: of how labels are drawn, those that decide among them, and of
    corruptions.
    """
    return sampling.version(True) | ({"corruptions": CORRUPTIONS} if told["corruptions"] else {})


def _row(told: Mapping[str, Any]) -> dict[str, Any]:
    """Of a comparison, which row it is."""
    return {"trial": told["trial"]} if "trial" in told else {}


def reads(start: StartConfig, *others: str) -> tuple[str, ...]:
    """The steps that a step reads which begins with a backbone: what makes that, and these others."""
    return (*((start.step,) if start.step else ()), *others)


def backbone_starts(recipe: Recipe) -> list[StartConfig]:
    """The backbones to measure, none twice. ConfigError if one of them is not there, or leaves no backbone."""
    said = recipe.evaluate.backbone_starts([stage.name for stage in recipe.stages])
    starts = [start(each, recipe) for each in said]
    check_names(starts)
    return starts


def start(said: str, recipe: Recipe, backbone: str | None = None, place: str = "evaluate.starts") -> StartConfig:
    """What a recipe names as a start at `place`, for images of the size that backbones are measured at."""
    steps = [*(f"stage.{stage.name}" for stage in recipe.stages), *(f"teacher.{name}" for name in recipe.teachers)]
    size = recipe.evaluate.image_size or recipe.student.image_size
    with error_context(place):
        found = start_of(said, steps, backbone or recipe.student.backbone, size)
        if found.weights:
            weights_digest(found.weights)  # the file is there
    kind, _, name = (found.step or "").partition(".")
    if kind == "teacher" and _taught(name, recipe) is None:
        others = [f"teacher.{other}" for other in recipe.teachers if _taught(other, recipe)]
        raise ConfigError(
            f"{place}: {said!r} is of kind {recipe.teachers[name].kind!r}, which leaves no backbone; "
            f"{', '.join([*others, *KEPT])} would work."
        )
    return found


def _taught(teacher: str, recipe: Recipe) -> str | None:
    """The timm name of the backbone that a teacher leaves, if it leaves one."""
    with error_context(f"teachers.{teacher}"):
        return recipe.teachers[teacher].backbone_name()


def backbone_of(said: str, recipe: Recipe) -> str:
    """The timm name of a start's backbone; of what is no step, the student's."""
    kind, _, name = said.partition(".")
    found: str | None = None
    if kind == "stage":
        found = next((stage.backbone for stage in recipe.chain() if stage.name == name), None)
    elif kind == "teacher" and name in recipe.teachers:
        found = _taught(name, recipe)
    return found or recipe.student.backbone


def check_measuring(recipe: Recipe, spaces: Spaces) -> None:
    """Raise ConfigError for a probe or a schedule that is not there, or sets without the labels for it."""
    config = recipe.evaluate
    check_how("evaluate", config)
    probed_sets(recipe, spaces)
    for name in config.finetune:
        if not spaces[name]:
            raise ConfigError(f"evaluate.finetune names {name!r}, which has no labels to fine-tune on.")
    backbone_starts(recipe)


def check_how(place: str, config: Measuring) -> None:
    """Raise ConfigError for a probe or a schedule that is not there."""
    for name in config.probes:
        require_one_of(name, modules(PROBES), f"{place}.probes:")
    require_one_of(config.schedule, SCHEDULES, f"{place}.schedule:")
