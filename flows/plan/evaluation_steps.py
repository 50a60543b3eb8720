"""Steps that measure: the student and its teachers, and backbones against each other. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.corruptions import VERSION as CORRUPTIONS
from evaluation.label_subsets import probe_module, probes_for
from evaluation.schedules import SCHEDULES
from flows.plan.resized_steps import resized_inputs
from flows.plan.resolve import ResolvedRecipe, Spaces
from pipeline.data import sampling
from pipeline.errors import ConfigError, require_one_of
from pipeline.models.weights import weights_digest
from pipeline.recipe.evaluation import EvaluateConfig, MeasurementConfig, StartConfig
from pipeline.recipe.recipe import Recipe
from pipeline.steps.artifact import LabelCheck, Step, StepKind


def measurement_needs(config: Mapping[str, Any]) -> list[Any]:
    """Return what a measurement asks of its set, as `LabelCheck.needs`."""
    return [config.get("probes"), *(config[key] for key in ("set", "splits", "labels"))]


def evaluation_needs(config: Mapping[str, Any]) -> list[Any]:
    """Return what the evaluation asks of the sets that the recipe names, as `LabelCheck.needs`."""
    return [config["sets"]]


CHECK = LabelCheck(measurement_needs, "evaluation.label_subsets:label_requests")
OPTIONAL = LabelCheck(measurement_needs, "evaluation.label_subsets:possible_requests")
"""The check of a set that the recipe does not name: it may be left out."""
EVALUATE = StepKind(
    "evaluate",
    "evaluation.evaluate:evaluate",
    version=2,
    measures=True,
    label_check=LabelCheck(evaluation_needs, "ingest.validation:check_held_out"),
)
LOCATION = ("start.weights",)
PROBE = StepKind(
    "probe", "evaluation.probing:probe", version=2, measures=True, label_check=CHECK, location_keys=LOCATION
)
FINETUNE = StepKind(
    "finetune",
    "evaluation.finetuning:finetune",
    version=4,
    measures=True,
    incremental_keys=("labels", "seeds"),
    label_check=CHECK,
    location_keys=LOCATION,
)

SHARED_KEYS = ("set", "splits", "labels", "seeds", "seed", "corruptions")
"""Settings that probes and fine-tuning depend on alike."""


def plan_steps(resolved: ResolvedRecipe) -> Iterator[Step]:
    """Yield the evaluation of student and teachers, and a step for each backbone, set, and way of measuring."""
    recipe, config = resolved.recipe, resolved.recipe.evaluate
    settings = {**config.model_dump(mode="json", include={"splits", "sets"}), "seed": recipe.seed}
    inputs = ("student", *resolved.data_steps, *resolved.teacher_steps)
    yield Step("evaluate", EVALUATE, ("evaluate",), settings, inputs)
    common = {**measurement_settings(config, recipe), "splits": config.splits, "seed": recipe.seed}
    probed = probed_sets(config, resolved.spaces)
    probing = PROBE if config.probe_sets is not None else dataclasses.replace(PROBE, label_check=OPTIONAL)
    for start in resolved.starts:
        for name in probed:
            step = f"probe.{start.name}.{name}"
            yield Step(step, probing, ("evaluate",), *probe_config(step, start, {**common, "set": name}))
        for name in config.finetune:
            step = f"finetune.{start.name}.{name}"
            finetuned, inputs = finetune_config(step, start, {**common, "set": name})
            copies = resized_inputs(recipe, "evaluate.finetune", [name], start.image_size)
            yield Step(step, FINETUNE, ("evaluate",), finetuned, (*inputs, *copies))


def measurement_settings(config: MeasurementConfig, recipe: Recipe) -> dict[str, Any]:
    """Return the settings that probes and fine-tuning have in common."""
    settings = config.model_dump(mode="json", include={"probes", "schedule", "labels", "seeds", "corruptions"})
    return {**settings, "width": recipe.student.width, "proposals": recipe.student.proposals}


def probe_config(name: str, start: StartConfig, settings: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the configuration and the inputs of the step that probes a backbone on the set `settings["set"]`."""
    probes = {name: probe_module(name) for name in settings["probes"]}
    versions = {name: probe.VERSION for name, probe in probes.items()}
    heads = ("width", "proposals") if any(probe.READS == "maps" for probe in probes.values()) else ()
    return _measurement_config(name, start, settings, ("probes", *heads), versions)


def finetune_config(
    name: str, start: StartConfig, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the configuration and the inputs of the step that fine-tunes a backbone on the set `settings["set"]`."""
    versions = {settings["schedule"]: SCHEDULES[settings["schedule"]].version}
    return _measurement_config(name, start, settings, ("schedule", "width", "proposals"), versions)


def _measurement_config(
    name: str, start: StartConfig, settings: Mapping[str, Any], keys: tuple[str, ...], versions: Mapping[str, int]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return configuration and inputs with the settings that all measurements depend on, and those at `keys`."""
    measured = {key: settings[key] for key in (*SHARED_KEYS, *keys)}
    trial = {"trial": settings["trial"]} if "trial" in settings else {}  # of a comparison's rows alone
    shared = sampling.version(True) | ({"corruptions": CORRUPTIONS} if settings["corruptions"] else {})
    config = {"name": name, **start_config(start), **measured, **trial, "versions": {**versions, **shared}}
    return config, start_inputs(start, f"data.{settings['set']}")


def start_config(start: StartConfig) -> dict[str, Any]:
    """Return a backbone to start from, for a step's configuration: other weights of the same name are another start."""
    digest = {"weights": weights_digest(start.weights)} if start.weights else {}
    return {"start": start.model_dump(mode="json"), **digest}


def start_inputs(start: StartConfig, *others: str) -> tuple[str, ...]:
    """Return the inputs of a step that starts from a backbone: the step that leaves it, if one does, and the others."""
    return (start.step, *others) if start.step else others


def probed_sets(config: EvaluateConfig, spaces: Spaces) -> list[str]:
    """Return the sets to probe on. ConfigError if one that is named has no labels for the probes, or none has."""
    if not config.probes:
        return []
    labelled = [name for name in spaces if any(probes_for(config.probes, space) for space in spaces[name].values())]
    if not labelled:
        raise ConfigError(
            f"evaluate.probes is {config.probes}, but no set has labels that they learn from: {_describe(spaces)}."
        )
    wanted = labelled if config.probe_sets is None else config.probe_sets
    sets = [require_one_of(name, labelled, "evaluate.probe_sets: set with labels for the probes") for name in wanted]
    check_probes("evaluate", config.probes, {name: spaces[name] for name in sets})
    return sets


def check_probes(place: str, probes: Sequence[str], spaces: Spaces) -> None:
    """Raise ConfigError for a probe that none of these sets has labels for."""
    for probe in probes:
        if not any(probes_for([probe], space) for tasks in spaces.values() for space in tasks.values()):
            raise ConfigError(
                f"{place}.probes names {probe!r}, but {', '.join(spaces)} has no labels that it learns from: "
                f"{_describe(spaces)}."
            )


def _describe(spaces: Spaces) -> str:
    """Return in words what labels sets have."""
    return "; ".join(f"{name} has labels for {', '.join(sorted(tasks)) or 'nothing'}" for name, tasks in spaces.items())
